"""The places of key bundles over time: the whole keyring each day, old bundles gone, erasures told, root keys kept."""

from __future__ import annotations

import time
import uuid
from datetime import timedelta

import pytest
from django.db import connection, connections
from django.utils import timezone
from pytest_django import Settings

from audit.services import SYSTEM
from config.schedule import EVERY
from notifications.models import Mail
from security import tasks
from security.errors import KeyInUse
from security.keyring import bundle, copies, deks, erasure, keks, publish, recovery, rewrap, roots, upkeep
from security.keyring.bundle import Bundle
from security.keyring.deks import Context
from security.keyring.seams import seams
from security.models import PLATFORM, BundleFile, Erasure, KeyEncryptionKey, RootKey
from tests.cast import make_user
from tests.security.places import OTHER, OWNER, Faulty, age, lose, make, opens
from tests.security.test_bundle import content

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def _two_places(both: list[Faulty], monkeypatch: pytest.MonkeyPatch, settings: Settings) -> None:
    monkeypatch.setattr(seams, "keep_keys_until", [])
    # Bundles alone hold copies here.
    settings.HEARTH = {**settings.HEARTH, "HEARTH_DATABASE_COPIES_DAYS": 0}


def keep() -> None:
    upkeep.keep(seconds=30)


def names(place: Faulty) -> list[str]:
    """Return what lies there, oldest first; the database knows the order exactly."""
    ages = dict(BundleFile.objects.values_list("name", "created"))
    return sorted(place.list(), key=lambda name: (name in ages, ages.get(name)))


def kinds(place: Faulty) -> list[str]:
    return [name.split("-")[1] for name in names(place)]


def opened(place: Faulty) -> list[Bundle]:
    return [bundle.parse(place.folder.get(name), place.name) for name in names(place)]


def a_day_later() -> None:
    age(1.01)
    keep()


def test_it_works(both: list[Faulty]) -> None:
    keys = make(3) | make(2, OTHER)
    keks.ensure_kek(PLATFORM)  # which wraps nothing yet
    before = content()
    keep()
    keep()
    assert [kinds(place) for place in both] == [["full"], ["full"]]
    lose()
    assert recovery.from_places(SYSTEM, [both[0]]).data_keys == 5
    assert content() == before
    assert opens(keys)


def test_the_whole_keyring_goes_in_parts_and_goes_on_where_it_was_cut_off(
    one: Faulty, two: Faulty, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publish, "MOST", 4)
    keys = make(10)
    upkeep.write_part(one, uuid.uuid4())
    keep()
    parts = [each.part for each in opened(one)]
    assert [(part.part, part.last) for part in parts] == [(0, False), (1, False), (2, True)]
    assert len({part.run for part in parts}) == 1
    assert len(two.list()) == 3
    lose()
    assert recovery.from_places(SYSTEM, [one]).data_keys == 10
    assert opens(keys)


def test_a_run_that_was_left_for_a_day_begins_anew(one: Faulty, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publish, "MOST", 2)
    make(3)
    upkeep.write_part(one, uuid.uuid4())
    age(2)
    keep()
    assert len({row.run for row in BundleFile.objects.filter(place="one")}) == 2
    assert publish.newest_whole("one") is not None


def test_a_turn_that_is_too_short_leaves_the_rest_to_the_next(one: Faulty) -> None:
    upkeep.keep(seconds=0)
    assert one.list() == []


def test_small_ones_go_when_two_whole_keyrings_have_them(both: list[Faulty]) -> None:
    keys = make()
    publish.publish(keys)
    a_day_later()
    assert kinds(both[0]) == ["delta", "full"]
    a_day_later()
    assert kinds(both[0]) == ["delta", "full", "full"]
    publish.publish(make())
    a_day_later()
    assert kinds(both[0])[:2] == ["full", "full"]
    assert kinds(both[0]).count("delta") == 1
    lose()
    recovery.from_places(SYSTEM, both)
    assert opens(keys)


def test_old_ones_go_but_never_the_two_newest(both: list[Faulty], settings: Settings) -> None:
    settings.HEARTH = {**settings.HEARTH, "HEARTH_KEY_BUNDLE_DAYS": 3}
    make()
    for _ in range(6):
        a_day_later()
    assert kinds(both[0]) == ["full"] * 3
    age(100)
    both[0].before_put = fail
    keep()
    assert kinds(both[0]) == ["full"] * 2
    assert kinds(both[1]) == ["full"] * 2 + ["full"]


def fail() -> None:
    raise OSError(30, "Read-only file system")


def test_a_place_that_fails_holds_up_no_other(one: Faulty, two: Faulty, caplog: pytest.LogCaptureFixture) -> None:
    make()
    one.before_put = fail
    keep()
    assert (one.list(), kinds(two)) == ([], ["full"])
    assert "Key bundles (one)" in caplog.text
    assert "Read-only file system" in caplog.text
    one.before_put = lambda: None
    keep()
    assert kinds(one) == ["full"]


def test_a_fault_that_nobody_foresaw_holds_up_no_other(two: Faulty, monkeypatch: pytest.MonkeyPatch) -> None:
    real = upkeep.tidy

    def tidy(place: Faulty, *, until: float) -> None:
        if place.name == "one":
            raise LookupError("no such bucket")
        real(place, until=until)

    monkeypatch.setattr(upkeep, "tidy", tidy)
    keep()
    assert kinds(two) == ["full"]


def test_what_never_became_right_is_removed(one: Faulty) -> None:
    make()
    one.stale = b"old"
    keep()
    one.stale = None
    keep()
    assert len(one.list()) == 2
    age(0.1, place="one", verified=None)
    keep()
    assert len(one.list()) == 1
    assert BundleFile.objects.filter(verified=None).count() == 0


def test_bundles_that_vanish_are_written_anew(one: Faulty, caplog: pytest.LogCaptureFixture) -> None:
    keys = make(2)
    keep()
    publish.publish(keys)
    taken = {name: one.folder.get(name) for name in one.list()}
    for name in taken:
        one.folder.remove(name)
    keep()
    assert "2 key bundles of the place one are gone" in caplog.text
    assert kinds(one) == ["full"]
    for name, data in taken.items():  # the disk is mounted again
        one.folder.put(name, data)
    keep()
    assert BundleFile.objects.filter(lost__isnull=False).count() == 0
    one.folder.remove(min(taken))
    keep()
    a_day_later()
    a_day_later()
    assert BundleFile.objects.filter(place="one").count() == len(one.list())


def test_bundles_that_the_database_forgot_are_taken_over(one: Faulty, two: Faulty) -> None:
    make()
    keep()
    (name,) = one.list()
    one.folder.put("a-foreign.hkb", b"somebody else's")
    two.folder.put("of-one.hkb", one.folder.get(name))
    before = BundleFile.objects.get(place="one")
    BundleFile.objects.all().delete()
    keep()
    found = BundleFile.objects.get(place="one")
    for word in ("pk", "name", "kind", "run", "part", "last", "roots", "created"):
        assert getattr(found, word) == getattr(before, word), word
    assert BundleFile.objects.filter(name="of-one.hkb").count() == 0
    assert one.folder.get("a-foreign.hkb") == b"somebody else's"
    assert sorted(kinds(one)) == ["foreign.hkb", "full"]


def test_a_bundle_from_the_future_is_of_today(one: Faulty) -> None:
    keep()
    root = roots.ensure_root()
    data = bundle.seal("one", bundle.read(), bundle.Part(), root=root, created=timezone.now() + timedelta(days=999))
    one.folder.put("late.hkb", data)
    keep()
    assert BundleFile.objects.get(name="late.hkb").created <= publish.database_time()


@pytest.mark.django_db(transaction=True)
def test_two_at_once_are_one(one: Faulty) -> None:
    make()
    other = connections.create_connection("default")
    try:
        with other.cursor() as cursor:
            cursor.execute("select pg_advisory_lock(%s)", [upkeep.LOCK])
            keep()
            assert one.list() == []
            cursor.execute("select pg_advisory_unlock(%s)", [upkeep.LOCK])
    finally:
        other.close()
    keep()
    assert kinds(one) == ["full"]


def test_a_turn_that_is_over_removes_the_rest_in_the_next(one: Faulty) -> None:
    for _ in range(3):
        publish.publish(make())
    for _ in range(2):
        a_day_later()
    age(1)
    upkeep.tidy(one, until=0)
    assert kinds(one) == ["delta", "delta", "full", "full"]
    upkeep.tidy(one, until=time.monotonic() + 60)
    assert kinds(one) == ["full", "full"]


def test_people_hear_of_a_place_without_a_whole_keyring(one: Faulty, monkeypatch: pytest.MonkeyPatch) -> None:
    make()
    assert upkeep.late() == []
    age(3)
    assert len(upkeep.late()) == 2
    keep()
    assert upkeep.late() == []
    one.before_put = fail
    age(3)
    keep()
    (sentence,) = upkeep.late()
    make_user("dana@example.org", staff=True)
    assert "The place one has had no whole key bundle since" in sentence
    heard: list[str] = []
    monkeypatch.setattr(seams, "places_late", [heard.extend, *seams.places_late])
    tasks.rotate_due()
    assert heard == [sentence]
    assert Mail.objects.get(recipient="dana@example.org").subject == "Hearth: key bundles are not written"
    monkeypatch.setattr(seams, "places", [])
    assert "HEARTH_KEY_BUNDLES" in upkeep.late()[0]


# Root keys


def test_a_root_key_stays_as_long_as_a_bundle_needs_it(both: list[Faulty]) -> None:
    keys = make()
    keep()
    old = roots.ensure_root()
    roots.rotate_root(SYSTEM)
    roots.move_keks(SYSTEM)
    assert RootKey.objects.get(pk=old.pk).state == RootKey.State.READABLE
    with pytest.raises(KeyInUse, match="2 others"):
        roots.retire(SYSTEM, old)
    keep()
    assert kinds(both[0]) == ["full", "full"]  # at once, under the new one
    a_day_later()
    age(20)
    keep()
    keep()
    assert publish.root_needed(old) == 0
    assert RootKey.objects.get(pk=old.pk).state == RootKey.State.RETIRED
    lose()
    recovery.from_places(SYSTEM, both)
    assert opens(keys)


def test_a_root_key_that_goes_while_a_bundle_is_read(both: list[Faulty], monkeypatch: pytest.MonkeyPatch) -> None:
    keys = make()
    real = bundle.rows_of
    turned: list[RootKey] = []

    def turn(*given: object) -> bundle.Rows:
        rows = real(*given)  # type: ignore[arg-type]  # handed on as it came
        if not turned:
            turned.append(roots.rotate_root(SYSTEM))
            roots.move_keks(SYSTEM)
        return rows

    monkeypatch.setattr(bundle, "rows_of", turn)
    publish.publish(keys)
    assert {tuple(row.roots) for row in BundleFile.objects.all()} == {(turned[0].pk,)}
    lose()
    recovery.from_places(SYSTEM, both)
    assert opens(keys)


# Erasures


def erase(owner: uuid.UUID = OWNER) -> Erasure:
    erasure.request(SYSTEM, owner)
    erasure.advance()
    return Erasure.objects.get(owner=owner)


def test_an_erasure_is_complete_when_no_bundle_holds_the_key(both: list[Faulty], settings: Settings) -> None:
    days = timedelta(days=settings.HEARTH["HEARTH_KEY_BUNDLE_DAYS"])
    make()
    assert copies.in_bundles(OWNER) is None
    publish.publish(make())
    promised = copies.in_bundles(OWNER)
    assert promised is not None
    assert promised >= timezone.now() + days - timedelta(minutes=1)
    row = erase()
    assert row.destroyed is not None
    assert row.completed is None
    assert erasure.complete_on(row) >= row.destroyed + days - timedelta(minutes=1)
    age(30)
    Erasure.objects.update(complete_after=timezone.now())
    erasure.advance()
    assert Erasure.objects.get().completed is None  # the file is there still, whatever its date
    for _ in range(3):
        a_day_later()
        age(30)
    Erasure.objects.update(destroyed=timezone.now() - timedelta(days=60), complete_after=timezone.now())
    BundleFile.objects.filter(created__lt=timezone.now() - timedelta(days=60)).delete()
    erasure.advance()
    assert Erasure.objects.get().completed is not None


def test_a_request_is_told_its_date(both: list[Faulty], settings: Settings) -> None:
    later = timezone.now() + timedelta(days=50)
    seams.keep_keys_until.append(lambda _: later)
    publish.publish(make())
    row = erasure.request(SYSTEM, OWNER)
    days = timedelta(days=settings.HEARTH["HEARTH_KEY_BUNDLE_DAYS"])
    assert erasure.complete_on(row) == later + days


def test_places_hear_of_an_erasure_at_once_and_once_more(both: list[Faulty]) -> None:
    make()
    keep()
    assert kinds(both[0]) == ["full"]
    row = erase()
    keep()
    assert kinds(both[0]) == ["full", "delta"]
    told = opened(both[0])[-1]
    assert [each["owner"] for each in told.erasures] == [OWNER]
    assert told.data_keys == []
    keep()
    assert kinds(both[0]) == ["full", "delta"]
    Erasure.objects.update(destroyed=row.destroyed and row.destroyed - timedelta(hours=1, minutes=1))
    age(0.03)
    keep()
    assert kinds(both[0]).count("delta") == 2
    keep()
    assert kinds(both[0]).count("delta") == 2


def test_an_old_bundle_brings_nobody_back_who_was_erased(both: list[Faulty]) -> None:
    erased, others = make(3), make(2, OTHER)
    keep()
    publish.publish(erased)
    erase()
    keep()
    lose()
    done = recovery.from_places(SYSTEM, both)
    assert done.data_keys == 2
    assert opens(others)
    assert {bytes(kek.wrapped) for kek in KeyEncryptionKey.objects.filter(owner=OWNER)} == {b""}
    assert Erasure.objects.get().destroyed is not None
    keks.cache.clear()
    with pytest.raises(Exception, match="erased"):
        deks.new_data_key(Context(OWNER, "backup.wal"))


def test_small_ones_carry_the_erasures_that_no_whole_keyring_has(both: list[Faulty]) -> None:
    make()
    erase()
    publish.publish(make(1, OTHER))
    assert [each["owner"] for each in opened(both[0])[-1].erasures] == [OWNER]
    Erasure.objects.update(destroyed=timezone.now() - timedelta(days=1))
    keep()
    publish.publish(make(1, OTHER))
    assert [len(each.erasures) for each in opened(both[0]) if each.part.kind == "delta"][-1] == 0


def test_it_runs_by_schedule(both: list[Faulty]) -> None:
    assert "security.tasks.keep_bundles" in EVERY
    make()
    tasks.keep_bundles()
    assert kinds(both[1]) == ["full"]
    rewrap.drive(per_second=1e6)
    assert connection.in_atomic_block
