"""An older copy of the database is restored beside places that know more: whoever was erased since stays erased."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from django.db import connection
from django.utils import timezone

from audit.models import AuditEvent
from audit.services import SYSTEM
from security.errors import KeyGone
from security.keyring import deks, erasure, keks, publish, roots, upkeep
from security.keyring.seams import seams
from security.models import PLATFORM, BundleFile, Erasure, KeyEncryptionKey
from security.sources.keyfile import KeyFileSource
from tests.security.places import OTHER, OWNER, Faulty, age, make, opens
from tests.security.test_dump import TABLES, tool

pytestmark = pytest.mark.django_db(transaction=True)
ALL = (*TABLES, "security_bundlefile", "security_generation")


class Dump:
    """A dump of the keyring, and the way back to it."""

    def __init__(self, file: Path) -> None:
        self.file = str(file)
        tool("pg_dump", "--data-only", "--format=custom", "--file", self.file, *(f"--table={name}" for name in ALL))

    def restore(self) -> None:
        with connection.cursor() as cursor:
            cursor.execute(f"truncate {', '.join(ALL)}")
        for cache in (keks.cache, deks.cache):
            cache.clear()
        tool("pg_restore", "--data-only", "--exit-on-error", self.file)


@pytest.fixture(autouse=True)
def _no_backups(both: list[Faulty], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seams, "keep_keys_until", [])


def keep() -> None:
    upkeep.keep(seconds=30)


def erase() -> Erasure:
    erasure.request(SYSTEM, OWNER)
    erasure.advance()
    return Erasure.objects.get(owner=OWNER, destroyed__isnull=False)


def again() -> int:
    return AuditEvent.objects.filter(verb="keys.destroyed_again", organisation_id=OWNER).count()


def files(*places: Faulty) -> list[str]:
    return [name for place in places for name in place.list()]


def test_an_erasure_of_after_the_dump_is_carried_out_again(both: list[Faulty], tmp_path: Path) -> None:
    erased, others = make(3), make(2, OTHER)
    keep()
    dump = Dump(tmp_path / "dump")
    first = erase()
    keep()
    dump.restore()
    assert opens(erased), "the trap: they are back"
    assert not Erasure.objects.exists()
    keep()
    for name, (context, _) in erased.items():
        with pytest.raises(KeyGone):
            deks.open_data_key(name, context)
    with pytest.raises(KeyGone, match="erased"):
        keks.ensure_kek(OWNER)
    assert {bytes(kek.wrapped) for kek in KeyEncryptionKey.objects.filter(owner=OWNER)} == {b""}
    assert opens(others)
    row = Erasure.objects.get()
    # The restored database held them until now, and so do the copies that were made of it.
    assert first.destroyed is not None
    assert row.destroyed is not None
    assert row.destroyed > first.destroyed
    assert row.complete_after is not None
    assert row.complete_after >= row.destroyed + timedelta(days=35)
    assert row.completed is None
    event = AuditEvent.objects.get(verb="keys.destroyed_again")
    assert event.organisation_id == OWNER
    assert event.after["destroyed_before"] == first.destroyed.isoformat()
    assert AuditEvent.objects.filter(verb="kek.destroy", organisation_id=OWNER).count() == 2
    keep()
    settled = files(*both)
    keep()
    assert files(*both) == settled
    assert again() == 1
    assert Erasure.objects.get().destroyed == row.destroyed


def test_one_place_that_knows_is_enough(both: list[Faulty], tmp_path: Path) -> None:
    erased = make()
    erasure.request(SYSTEM, OWNER)  # the request is in the dump
    dump = Dump(tmp_path / "dump")
    erase()
    keep()
    for name in both[0].list():
        both[0].folder.remove(name)
    dump.restore()
    assert opens(erased)
    keep()
    assert Erasure.objects.get().destroyed is not None
    assert again() == 1
    assert KeyEncryptionKey.objects.get(owner=OWNER).state == KeyEncryptionKey.State.DESTROYED


def test_a_bundle_that_does_not_open_yet_is_read_later(
    both: list[Faulty], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    keys = make()
    keep()
    dump = Dump(tmp_path / "dump")
    root = roots.rotate_root(SYSTEM)
    erase()
    keep()
    origin = roots.source("file")
    assert isinstance(origin, KeyFileSource)
    file = origin.file_of(root.id)
    away = file.rename(file.with_name("away"))
    dump.restore()
    for _ in range(4):  # days pass, and whole keyrings are written without it
        keep()
        age(1.01)
    keep()
    assert "can't be opened, so an erasure that only they tell of is not carried out" in caplog.text
    assert opens(keys)
    away.rename(file)
    keep()
    assert again() == 1
    assert KeyEncryptionKey.objects.get(owner=OWNER).wrapped == b""


def test_a_short_turn_reads_the_rest_in_the_next(both: list[Faulty], tmp_path: Path) -> None:
    dump = Dump(tmp_path / "dump")
    for _ in range(3):
        publish.publish(make())
    dump.restore()
    unread = BundleFile.objects.filter(place="one", known=None)
    upkeep.tidy(both[0], until=0)
    assert unread.count() == 2
    upkeep.tidy(both[0], until=0)
    keep()
    assert unread.count() == 0


def test_an_erasure_of_keys_that_are_not_here_keeps_its_dates() -> None:
    now = timezone.now()
    dates = {"requested": now, "destroy_after": now, "destroyed": now, "complete_after": now, "completed": now}
    told = Erasure(owner=OWNER, **dates)
    asked = Erasure(owner=OTHER, **dates | {"destroyed": None, "completed": None})
    assert erasure.learn([told, told, asked, Erasure(owner=PLATFORM, **dates)], OWNER) == 1
    row = Erasure.objects.get()
    assert {name: getattr(row, name) for name in dates} == dates
    assert erasure.learn([told], OWNER) == 0
    with pytest.raises(KeyGone):
        keks.ensure_kek(OWNER)
