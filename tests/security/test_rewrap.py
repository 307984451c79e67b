"""Rewrap: everything stays readable, whoever dies, whoever else works, and whatever is broken."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
import uuid
from datetime import timedelta
from pathlib import Path

import pytest
from django.db import connection
from django.utils import timezone
from pytest_django import Settings

from audit.models import AuditEvent
from audit.services import SYSTEM
from security.errors import LeaseLost
from security.keyring import deks, keks, rewrap
from security.keyring.deks import Context
from security.keyring.seams import seams
from security.models import DataKey, KeyEncryptionKey, Rewrap
from security.secret import Key
from tests.security.softhsm import Hsm
from tests.together import at_once

State = KeyEncryptionKey.State
ROOT = Path(__file__).resolve().parents[2]
FAST = 1_000_000.0
COUNT = 1500
"""Data keys that several workers, each killed after a tenth of a second, don't finish."""


def context(owner: uuid.UUID) -> Context:
    return Context(owner, "backup.media")


def fill(owner: uuid.UUID, count: int) -> dict[uuid.UUID, bytes]:
    """Make data keys and rotate; return what must still be readable."""
    made = [deks.new_data_key(context(owner)) for _ in range(count)]
    keks.rotate(SYSTEM, owner)
    return {each.id: bytes(each.key.value) for each in made}


def read(owner: uuid.UUID, keys: dict[uuid.UUID, bytes]) -> bool:
    keks.cache.clear()
    return all(bytes(deks.open_data_key(name, context(owner)).value) == key for name, key in keys.items())


def states(owner: uuid.UUID) -> list[str]:
    return list(KeyEncryptionKey.objects.filter(owner=owner).order_by("version").values_list("state", flat=True))


@pytest.mark.django_db
def test_it_works() -> None:
    owner = uuid.uuid4()
    keys = fill(owner, 25)
    seen: list[int] = []
    assert rewrap.drive(per_second=FAST, size=10, progress=lambda row: seen.append(row.done)) == 25
    run = Rewrap.objects.get()
    assert (run.total, run.done, run.error) == (25, 25, "")
    assert run.finished is not None
    assert seen[:3] == [10, 20, 25]
    assert states(owner) == ["retired", "active"]
    assert read(owner, keys)
    assert AuditEvent.objects.filter(verb="kek.retire", organisation_id=owner).count() == 1
    assert rewrap.drive(per_second=FAST) == 0
    keks.destroy(SYSTEM, KeyEncryptionKey.objects.get(version=1))
    assert read(owner, keys)


@pytest.mark.django_db
def test_several_old_versions_go_in_one_run() -> None:
    owner = uuid.uuid4()
    keys = fill(owner, 3) | fill(owner, 4)
    rewrap.drive(per_second=FAST)
    assert states(owner) == ["retired", "retired", "active"]
    assert read(owner, keys)


@pytest.mark.django_db
def test_owners_take_turns() -> None:
    big, small = uuid.uuid4(), uuid.uuid4()
    fill(big, 30)
    fill(small, 2)
    order: list[uuid.UUID] = []
    rewrap.drive(per_second=FAST, size=5, progress=lambda row: order.append(row.owner))
    assert small in order[:2]
    assert order.count(big) == 7


@pytest.mark.django_db
def test_the_rate_is_kept_and_the_time_is_kept() -> None:
    owner = uuid.uuid4()
    fill(owner, 20)
    began = time.monotonic()
    assert rewrap.drive(per_second=40, size=5) == 20
    assert time.monotonic() - began >= 0.45
    fill(owner, 20)
    assert rewrap.drive(per_second=FAST, size=5, seconds=0) == 0
    assert rewrap.drive(per_second=10, size=1000, seconds=0.5) < 40
    run = Rewrap.objects.get(finished__isnull=True)
    assert (run.lease, run.lease_until) == (None, None)


@pytest.mark.django_db
def test_a_run_that_somebody_holds_is_left_alone() -> None:
    owner = uuid.uuid4()
    fill(owner, 3)
    (row,) = rewrap.open_runs()
    run = rewrap.claim(row)
    assert run is not None
    assert rewrap.claim(row) is None
    assert rewrap.drive(per_second=FAST) == 0
    Rewrap.objects.update(lease_until=timezone.now() - timedelta(seconds=1))
    assert rewrap.drive(per_second=FAST) == 3
    with pytest.raises(LeaseLost, match="stays moved"):
        run.step(10)
    assert read(owner, {})


@pytest.mark.django_db
def test_a_lease_that_is_lost_in_the_middle_ends_the_work() -> None:
    owner = uuid.uuid4()
    keys = fill(owner, 10)
    steal = {"lease": uuid.uuid4(), "lease_until": timezone.now() + timedelta(hours=1)}

    def take(_: Rewrap) -> None:
        Rewrap.objects.update(**steal)

    assert rewrap.drive(per_second=FAST, size=5, progress=take) == 5
    assert DataKey.objects.filter(kek__version=1).count() == 5
    assert Rewrap.objects.get().lease == steal["lease"]
    assert read(owner, keys)


@pytest.mark.django_db
def test_what_is_added_while_it_runs_is_found_by_the_proof() -> None:
    owner = uuid.uuid4()
    keys = fill(owner, 4)
    (row,) = rewrap.open_runs()
    run = rewrap.claim(row)
    assert run is not None
    while run.step(10):
        pass
    old = KeyEncryptionKey.objects.get(version=1)
    late, key = DataKey(kek=old, owner=owner, purpose="backup.media"), Key.fresh()
    late.wrapped = deks.wrap_with(keks.open_kek(old), old.pk, late, key)
    late.save(force_insert=True)
    assert run.finish(SYSTEM) is False
    assert states(owner) == ["decrypt-only", "active"]
    assert rewrap.drive(per_second=FAST) == 1
    assert states(owner) == ["retired", "active"]
    assert read(owner, keys | {late.pk: bytes(key.value)})


@pytest.mark.django_db
def test_something_elsewhere_keeps_the_old_version(monkeypatch: pytest.MonkeyPatch) -> None:
    owner = uuid.uuid4()
    fill(owner, 1)
    monkeypatch.setattr(seams, "wrapped_elsewhere", [lambda *_: 1])
    rewrap.drive(per_second=FAST)
    assert states(owner) == ["decrypt-only", "active"]


@pytest.mark.django_db
def test_a_damaged_row_is_named_and_stops_nobody() -> None:
    owner, other = uuid.uuid4(), uuid.uuid4()
    keys, others = fill(owner, 6), fill(other, 2)
    broken = sorted(keys)[2]
    good = bytes(DataKey.objects.get(pk=broken).wrapped)
    DataKey.objects.filter(pk=broken).update(wrapped=b"nonsense")
    rewrap.drive(per_second=FAST, size=4)
    run = Rewrap.objects.get(owner=owner)
    assert str(broken) in run.error
    assert run.finished is None
    assert (states(owner), states(other)) == (["decrypt-only", "active"], ["retired", "active"])
    assert read(other, others)
    assert rewrap.drive(per_second=FAST) == 0, "it rests until somebody has looked"
    DataKey.objects.filter(pk=broken).update(wrapped=good)
    Rewrap.objects.update(lease_until=timezone.now())
    rewrap.drive(per_second=FAST)
    assert Rewrap.objects.get(owner=owner).error == ""
    assert read(owner, keys)


@pytest.mark.django_db
def test_an_hsm_that_is_away_stops_it_and_nothing_is_half_done(hsm: Hsm, settings: Settings) -> None:
    settings.HEARTH = {**settings.HEARTH, **hsm.settings(), "HEARTH_KEY_SOURCE": "hsm"}
    owner = uuid.uuid4()
    keys = fill(owner, 6)

    def leave(row: Rewrap) -> None:
        if row.done == 2 and hsm.tokens.exists():
            hsm.take_away()
            keks.cache.clear()

    assert rewrap.drive(per_second=FAST, size=2, progress=leave) == 2
    run = Rewrap.objects.get()
    assert "does not answer" in run.error
    assert (run.lease, run.done, run.finished) == (None, 2, None)
    assert DataKey.objects.filter(kek__version=2).count() == 2
    hsm.bring_back()
    assert rewrap.drive(per_second=FAST) == 4
    assert states(owner) == ["retired", "active"]
    assert read(owner, keys)


@pytest.mark.django_db(transaction=True)
def test_two_rewrappers_at_once() -> None:
    owners = [uuid.uuid4() for _ in range(3)]
    keys = {owner: fill(owner, 120) for owner in owners}
    counts = at_once([lambda: rewrap.drive(per_second=FAST, size=7)] * 2, seconds=60)
    rewrap.drive(per_second=FAST)
    assert len(counts) == 2
    for owner in owners:
        assert states(owner) == ["retired", "active"]
        assert read(owner, keys[owner])
    assert sorted(Rewrap.objects.values_list("done", flat=True)) == [120, 120, 120]


@pytest.mark.django_db(transaction=True)
def test_killed_at_any_point_nothing_is_lost() -> None:
    """Five workers die in the middle, each somewhere else; the sixth finishes."""
    owner = uuid.uuid4()
    keys = fill(owner, COUNT)
    dice = random.Random(4711)
    killed = 0
    for _ in range(5):
        worker = start_worker()
        assert worker.stdout is not None
        assert worker.stdout.readline() == b"ready\n"
        time.sleep(dice.uniform(0.0, 0.12))
        worker.send_signal(signal.SIGKILL)
        killed += worker.wait(60) == -signal.SIGKILL
        worker.stdout.close()
        assert DataKey.objects.count() == COUNT
        assert set(DataKey.objects.values_list("kek__state", flat=True)) <= {"active", "decrypt-only"}
        # A dead worker's lease ends by itself; the test does not wait for that.
        Rewrap.objects.update(lease_until=timezone.now() - timedelta(seconds=1))
    assert killed >= 3
    rewrap.drive(per_second=FAST)
    assert states(owner) == ["retired", "active"]
    assert read(owner, keys)
    assert Rewrap.objects.get(finished__isnull=False).done == COUNT


def start_worker() -> subprocess.Popen[bytes]:
    """Start a process that rewraps slowly on the tests' database."""
    code = (
        "import os, django; django.setup()\n"
        "from django.db import connection\n"
        "from security.keyring import rewrap\n"
        "connection.ensure_connection(); print('ready', flush=True)\n"
        "rewrap.drive(per_second=1e9, size=20)\n"
    )
    name = connection.settings_dict["NAME"]
    url = os.environ["DATABASE_URL"].replace("/hearth?", f"/{name}?")
    environment = os.environ | {"DATABASE_URL": url, "PYTHONPATH": f"{ROOT / 'platform'}:{ROOT}"}
    return subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=environment, stdout=subprocess.PIPE)
