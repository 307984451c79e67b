"""When keys end, every process stops using them; and what changes under somebody's hands gets a typed error."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from django.db import IntegrityError, connection
from django.test.utils import CaptureQueriesContext

from audit.services import SYSTEM
from security.errors import KeyGone, KeysChanged
from security.keyring import deks, erasure, generation, keks, rewrap
from security.keyring.cache import KeyCache
from security.keyring.deks import Context
from security.models import DataKey, KeyEncryptionKey, Rewrap
from security.secret import Key

ROOT = Path(__file__).resolve().parents[2]
State = KeyEncryptionKey.State
# A process as the web server is one: each line it gets is a request that needs the key.
READER = """
import sys, uuid, django; django.setup()
from django.core.signals import request_started
from django.db import connection
from security.errors import KeyGone
from security.keyring import deks, keks
owner, identity, column = uuid.UUID(sys.argv[1]), uuid.UUID(sys.argv[2]), sys.argv[3]
for line in sys.stdin:
    request_started.send(sender=None)
    try:
        deks.open_data_key(identity, deks.Context(owner, column)).wipe()
        print("opened", flush=True)
    except KeyGone:
        print("gone", flush=True)
"""


class Reader:
    """Another process that has a key open."""

    def __init__(self, owner: uuid.UUID, identity: uuid.UUID, column: str) -> None:
        name = connection.settings_dict["NAME"]
        url = os.environ["DATABASE_URL"].replace("/hearth?", f"/{name}?")
        environment = os.environ | {"DATABASE_URL": url, "PYTHONPATH": f"{ROOT / 'platform'}:{ROOT}"}
        command = [sys.executable, "-c", READER, str(owner), str(identity), column]
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )

    def ask(self) -> str:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("open\n")
        return self.process.stdout.readline().strip()

    def stop(self) -> None:
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()
        self.process.wait(60)


@pytest.fixture
def reader(transactional_db: None) -> Iterator[Callable[[uuid.UUID, uuid.UUID, str], Reader]]:
    started: list[Reader] = []

    def start(owner: uuid.UUID, identity: uuid.UUID, column: str) -> Reader:
        started.append(Reader(owner, identity, column))
        return started[-1]

    yield start
    for each in started:
        each.stop()


def test_another_process_lets_go_of_an_erased_key_at_its_next_request(
    reader: Callable[[uuid.UUID, uuid.UUID, str], Reader],
) -> None:
    owner, column = uuid.uuid4(), "column:a.b.c"
    shared = deks.shared_data_key(Context(owner, column))
    other = reader(owner, shared.id, column)
    assert [other.ask(), other.ask()] == ["opened", "opened"]
    erasure.request(SYSTEM, owner)
    erasure.advance()
    assert other.ask() == "gone"


def seen_by_others() -> uuid.UUID:
    generation.ask_again()
    return generation.current()


@pytest.mark.django_db
def test_what_ends_keys_begins_a_generation() -> None:
    owner = uuid.uuid4()
    deks.shared_data_key(Context(owner, "column:a.b.c"))
    seen = [seen_by_others()]
    keks.rotate(SYSTEM, owner)
    assert seen_by_others() == seen[0], "a mere rotation ends no key"
    keks.rotate(SYSTEM, owner, compromised=True)
    seen.append(seen_by_others())
    rewrap.drive(per_second=1e6)
    keks.destroy(SYSTEM, KeyEncryptionKey.objects.get(version=1))
    seen.append(seen_by_others())
    erasure.request(SYSTEM, owner)
    erasure.advance()
    seen.append(seen_by_others())
    assert len(set(seen)) == 4


@pytest.mark.django_db
def test_a_request_asks_once() -> None:
    generation.ask_again()
    shared = deks.shared_data_key(context := Context(uuid.uuid4(), "column:a.b.c"))
    deks.open_data_key(shared.id, context)
    generation.ask_again()  # a request's begin
    with CaptureQueriesContext(connection) as queries:
        for _ in range(3):
            deks.open_data_key(shared.id, context)
    assert len(queries) == 1


@pytest.mark.django_db
def test_a_row_read_before_the_end_opens_nothing_after_it() -> None:
    owner = uuid.uuid4()
    held = keks.ensure_kek(owner)
    keks.open_kek(held).wipe()
    erasure.request(SYSTEM, owner)
    erasure.advance()
    generation.ask_again()
    with pytest.raises(KeyGone, match="destroyed"):
        keks.open_kek(held)


def test_a_key_that_nobody_uses_is_wiped_by_itself() -> None:
    cache = KeyCache(idle=0.2)
    used, idle = uuid.uuid4(), uuid.uuid4()
    for each in (used, idle):
        cache.put(each, Key.fresh())
    memory = cache._entries[idle].key.value
    end = time.monotonic() + 20
    while len(cache) > 1 and time.monotonic() < end:
        cache.get(used)
        time.sleep(0.01)
    assert bytes(memory) == bytes(32)
    while len(cache) and time.monotonic() < end:
        time.sleep(0.01)
    assert (len(cache), cache._sweeper) == (0, None)
    cache.put(used, Key.fresh())
    assert cache.get(used) is not None


# What changes in between


@pytest.mark.django_db
def test_a_version_that_is_retired_in_between_is_looked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    owner = uuid.uuid4()
    old = keks.ensure_kek(owner)
    keks.rotate(SYSTEM, owner)
    KeyEncryptionKey.objects.filter(pk=old.pk).update(state=State.RETIRED)
    real, answers = keks.ensure_kek, [old, old]
    monkeypatch.setattr(keks, "ensure_kek", lambda each: answers.pop() if answers else real(each))
    made = deks.new_data_key(Context(owner, "backup.wal"))
    assert DataKey.objects.get(pk=made.id).kek.version == 2
    answers[:] = [old]
    made = deks.shared_data_key(Context(owner, "column:a.b.c"))
    assert DataKey.objects.get(pk=made.id).kek.version == 2


@pytest.mark.django_db
@pytest.mark.parametrize("make", [deks.new_data_key, deks.shared_data_key])
def test_keys_that_never_hold_still(make: Callable[[Context], deks.Opened], monkeypatch: pytest.MonkeyPatch) -> None:
    owner = uuid.uuid4()
    old = keks.ensure_kek(owner)
    KeyEncryptionKey.objects.filter(pk=old.pk).update(state=State.RETIRED)
    monkeypatch.setattr(keks, "ensure_kek", lambda _: old)
    with pytest.raises(KeysChanged, match="Nothing was written"):
        make(Context(owner, "column:a.b.c"))
    assert DataKey.objects.count() == 0


@pytest.mark.django_db
def test_a_first_version_that_others_make_and_end_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def taken(*_: object) -> KeyEncryptionKey:
        raise IntegrityError

    monkeypatch.setattr(keks, "_new", taken)
    with pytest.raises(KeysChanged, match="5 times"):
        keks.ensure_kek(uuid.uuid4())


@pytest.mark.django_db
def test_a_rewrap_whose_target_is_retired_goes_on_at_its_next_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    owner, other = uuid.uuid4(), uuid.uuid4()
    for each in (owner, other):
        deks.new_data_key(Context(each, "backup.media"))
        keks.rotate(SYSTEM, each)
    gone = keks.rotate(SYSTEM, owner)
    keks.rotate(SYSTEM, owner)
    KeyEncryptionKey.objects.filter(pk=gone.pk).update(state=State.RETIRED)
    real = keks.ensure_kek
    monkeypatch.setattr(keks, "ensure_kek", lambda each: gone if each == owner else real(each))
    rewrap.drive(per_second=1e6)
    run = Rewrap.objects.get(owner=owner)
    assert "nothing is lost" in run.error
    assert (run.lease, run.finished, run.done) == (None, None, 0)
    assert Rewrap.objects.get(owner=other).finished is not None
    monkeypatch.setattr(keks, "ensure_kek", real)
    rewrap.drive(per_second=1e6)
    run.refresh_from_db()
    assert (run.error, run.finished is not None) == ("", True)
