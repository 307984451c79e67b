"""Each server's backups are copied to its region's second store by the clock; what it has is told honestly."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.db import connection
from django.db.models import F
from django.utils import timezone

from audit.models import AuditEvent
from audit.services import SYSTEM
from backups import alerts, places, shelves
from backups.copying import leases, schedule, selectors, turns, verbs
from backups.engine import names
from backups.engine.lacking import kind_of
from backups.engine.replicate import Replication
from backups.engine.stores.base import StoreError
from backups.models import Alarm, Copy, RegionStores, RestorePoint, ServerBackups, Shelf, Store
from tenants.errors import Refused
from tenants.models import Server
from tests.backups.control.looks import Kept
from tests.backups.s3_servers import S3Server
from tests.backups.stores.test_replicate import Troubled

pytestmark = pytest.mark.django_db
MINUTE = timedelta(minutes=1)


@pytest.fixture(autouse=True)
def unseen(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """A thread of its own would not see a lease that the test's transaction has not committed."""
    if "keeps" not in request.node.name:
        monkeypatch.setattr(leases, "RENEW_EVERY", 3600.0)


@pytest.fixture
def kept(server: Server, tmp_path: Path) -> Kept:
    """Three days of backups, and nothing copied yet."""
    made = Kept(server, tmp_path / "disk", 3)
    RestorePoint.objects.update(copied=None)
    ServerBackups.objects.update(media_until=F("until"), line=made.history.line, stored_bytes=1)
    return made


@pytest.fixture
def second(kept: Kept, tmp_path: Path) -> Store:
    """The region's second store: a folder on another disk."""
    root = tmp_path / "other-disk"
    root.mkdir()
    made = Store.objects.create(code="far", name="Far away", kind=Store.Kind.FOLDER, folder=str(root))
    stores = RegionStores.objects.get()
    stores.second = made
    places.choose_stores(SYSTEM, chosen=stores)
    return Store.objects.get(pk=made.pk)


def names_in(store: Store, server: Server) -> set[str]:
    with places.opened(store, server.pk) as opened:
        return {each.name for each in opened.listing()}


def turn(**columns: Any) -> Copy:
    """Let the copy's turn come, and return how it is then."""
    schedule.make_missing()
    Copy.objects.update(next_turn=timezone.now() - MINUTE, **columns)
    lease = leases.claim()
    assert lease is not None
    turns.run(lease)
    return Copy.objects.get(pk=lease.copy.pk)


def row() -> ServerBackups:
    return ServerBackups.objects.get()


def test_it_works(kept: Kept, second: Store) -> None:
    told = row().until
    assert schedule.make_missing() == 1
    assert schedule.wanted() == 1
    assert schedule.copy_some(time.monotonic() + 60, time.monotonic) is False, "nothing more is due"
    copy = Copy.objects.get()
    assert (copy.fault, copy.complete, copy.lag_objects, copy.lease_until) == ("", True, 0, None)
    assert names_in(second, kept.server) == kept.names()
    assert (row().copied_until, row().copy_lag_bytes, copy.reached) == (told, 0, told)
    assert not RestorePoint.objects.filter(copied=None).exists()
    assert copy.next_turn is not None
    assert copy.next_turn > timezone.now()
    found = selectors.second_of(kept.server)
    assert found is not None
    assert (found.until, found.fault, found.points) == (told, "", 3)


def test_a_region_without_a_second_store_has_no_copies(kept: Kept) -> None:
    assert schedule.make_missing() == 0
    assert selectors.second_of(kept.server) is None


def test_what_has_nothing_new_costs_no_call(kept: Kept, second: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    turn()
    ServerBackups.objects.update(until=F("until") + 30 * MINUTE, media_until=F("media_until") + 20 * MINUTE)
    Copy.objects.update(next_turn=timezone.now() - MINUTE)
    monkeypatch.setattr(places, "opened", None)
    assert schedule.pass_quiet() == 1
    assert (row().copied_until, leases.claim()) == (row().media_until, None)
    Copy.objects.update(next_turn=timezone.now() - MINUTE)
    ServerBackups.objects.update(stored_bytes=2)
    assert schedule.pass_quiet() == 0
    ServerBackups.objects.update(stored_bytes=1)
    Copy.objects.update(turned=F("turned") - 2 * schedule.LOOK)
    assert schedule.pass_quiet() == 0, "either store may have lost something"


def test_a_large_server_goes_behind_the_others(
    kept: Kept, second: Store, make_server: Callable[[str], Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = [each.size for each in kept.history.store.listing() if kind_of(each.name) is None]
    monkeypatch.setattr(turns, "MOST_BYTES", sum(data) // 3)
    schedule.make_missing()
    other = make_server("other")
    ServerBackups.objects.create(server=other, reported=timezone.now())
    copy = turn()
    assert (copy.fault, copy.complete, copy.copied_objects > 0) == ("", False, True)
    assert copy.reached is None or copy.reached < kept.history.now
    Copy.objects.exclude(pk=copy.pk).update(next_turn=timezone.now() - MINUTE)
    lease = leases.claim()
    assert lease is not None
    assert lease.copy.server_id == other.pk
    with lease.write(next_turn=None):
        pass
    for _ in range(100):
        copy = again(copy)
        if copy.complete:
            break
    assert copy.complete
    assert names_in(second, kept.server) == kept.names()


def again(copy: Copy) -> Copy:
    Copy.objects.filter(pk=copy.pk).update(next_turn=timezone.now() - MINUTE)
    lease = leases.claim()
    assert lease is not None
    turns.run(lease)
    return Copy.objects.get(pk=copy.pk)


def test_only_so_many_at_once_and_each_by_one(kept: Kept, second: Store, settings: Any) -> None:
    schedule.make_missing()
    lease = leases.claim()
    assert lease is not None
    assert (leases.claim(), schedule.wanted()) == (None, 0), "it is taken"
    settings.HEARTH = {**settings.HEARTH, "HEARTH_COPIES": 1}
    Copy.objects.update(lease_until=timezone.now() - MINUTE)
    taken = leases.claim()
    assert taken is not None, "its worker is gone"
    with pytest.raises(leases.LeaseLostError), lease.write(fault="mine"):
        pass
    turns.run(lease)
    assert Copy.objects.get().turned is None, "who lost the lease writes nothing"
    assert leases.room() == 0


def test_the_bandwidth_is_shared(kept: Kept, second: Store) -> None:
    schedule.make_missing()
    lease = leases.claim()
    assert lease is not None
    assert turns.share(lease.copy) is None
    RegionStores.objects.update(copy_megabytes=30)
    assert turns.share(lease.copy) == 30_000_000


@pytest.mark.django_db(transaction=True)
def test_a_slow_store_keeps_its_lease_and_gets_a_new_share(
    kept: Kept, second: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long a call takes, nobody else begins the same; and the pace is asked for again meanwhile."""
    monkeypatch.setattr(leases, "RENEW_EVERY", 0.05)
    renewed, share = threading.Event(), turns.share

    def again(copy: Copy) -> float | None:
        if threading.current_thread() is not threading.main_thread():
            renewed.set()
        return share(copy)

    def slow(_: str) -> None:
        assert renewed.wait(60)

    monkeypatch.setattr(turns, "share", again)
    with failing(monkeypatch, "far", slow):
        copy = turn()
    assert renewed.is_set()
    assert (copy.fault, copy.complete) == ("", True)


@pytest.mark.django_db(transaction=True)
def test_who_keeps_no_lease_stops(kept: Kept, second: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "RENEW_EVERY", 0.05)
    stopped, stop = threading.Event(), Replication.stop

    def note(replication: Replication) -> None:
        stop(replication)
        stopped.set()

    def taken(_: str) -> None:
        Copy.objects.update(lease_owner="somebody else")
        connection.close()
        assert stopped.wait(60)

    monkeypatch.setattr(Replication, "stop", note)
    with failing(monkeypatch, "far", taken):
        copy = turn()
    assert (copy.lease_owner, copy.turned) == ("somebody else", None)


# What stores do wrong, on both sides


@contextmanager
def failing(monkeypatch: pytest.MonkeyPatch, code: str, fault: Callable[[str], None]) -> Iterator[None]:
    """Let each call of one store meet a fault."""
    right = places.opened

    @contextmanager
    def opened(store: Store, server: Any, *, make: bool = False) -> Iterator[Any]:
        with right(store, server, make=make) as found:
            troubled = Troubled(found)
            if store.code == code:
                troubled.on_get = troubled.on_put = fault
            yield troubled

    with monkeypatch.context() as patch:
        patch.setattr(places, "opened", opened)
        yield


@pytest.mark.parametrize(
    ("side", "code"), [("disk", "StoreAway"), ("disk", "StoreDenied"), ("far", "StoreAway"), ("far", "StoreFull")]
)
def test_a_store_that_fails_is_told_and_costs_nothing(
    kept: Kept, second: Store, monkeypatch: pytest.MonkeyPatch, side: str, code: str
) -> None:
    before = kept.names()

    def fault(_: str) -> None:
        raise StoreError(f"The store {side} is in trouble.", code=code, retry=code == "StoreAway")

    with failing(monkeypatch, side, fault):
        copy = turn()
    assert (copy.fault_code, f"The store {side} is in trouble." in copy.fault) == (code, True)
    assert "What was copied before is safe" in copy.fault
    assert copy.next_turn is not None
    assert (copy.next_turn < timezone.now() + 2 * MINUTE) is (code == "StoreAway")
    assert (row().copied_until, kept.names()) == (None, before)
    Copy.objects.update(fault_since=timezone.now() - timedelta(hours=1))
    alerts.observe()
    assert "is in trouble" in Alarm.objects.get(cause="copy").text
    copy = turn()
    assert (copy.fault, copy.complete) == ("", True)
    alerts.observe()
    assert not Alarm.objects.filter(cause="copy").exists()


def test_stores_that_fail_keep_one_worker_busy_and_no_more(
    kept: Kept, second: Store, make_server: Callable[[str], Server]
) -> None:
    ServerBackups.objects.create(server=make_server("other"), reported=timezone.now())
    schedule.make_missing()
    Copy.objects.update(fault_code="StoreAway", fault_since=timezone.now(), next_turn=timezone.now() - MINUTE)
    assert leases.claim() is not None
    assert leases.claim() is None


def test_a_source_that_gives_old_data_moves_nothing_on(kept: Kept, second: Store) -> None:
    reached = turn().reached
    moments = sorted(each for each in kept.names() if f"{kept.history.line}/moments/" in each)
    kept.history.store.delete(moments[-2:])
    ServerBackups.objects.update(until=F("until") + MINUTE, media_until=F("until") + MINUTE, stored_bytes=2)
    copy = turn()
    assert (copy.fault_code, copy.complete, copy.reached) == ("SourceOld", False, reached)
    assert "old data" in copy.fault
    assert row().copied_until == reached
    assert set(moments) <= names_in(second, kept.server), "what the second has stays"


def test_a_source_that_lost_a_restore_point(kept: Kept, second: Store) -> None:
    turn()
    lost = kept.history.points[0].id
    kept.history.store.delete([names.point(lost)])
    copy = turn()
    assert copy.fault_code == "SourceLost"
    assert lost in copy.fault
    assert names.point(lost) in names_in(second, kept.server)


def test_a_source_whose_object_is_damaged(kept: Kept, second: Store) -> None:
    victim = kept.history.points[-1]
    path = kept.folder / victim.base.name
    path.chmod(0o600)
    path.write_bytes(bytes(path.stat().st_size))
    copy = turn()
    assert copy.fault_code == "StoreDamaged"
    assert victim.base.name in copy.fault
    assert set(RestorePoint.objects.filter(copied=None).values_list("identity", flat=True)) == {victim.id}


def test_a_target_that_lost_everything_is_told_and_filled_again(kept: Kept, second: Store) -> None:
    told = turn().reached
    with places.opened(second, kept.server.pk) as store:
        store.delete(names_in(second, kept.server))
    copy = turn()
    assert (copy.complete, copy.reached) == (True, told)
    assert names_in(second, kept.server) == kept.names()
    event = AuditEvent.objects.get(verb="backups.copy-lost")
    assert event.after["restore_points"] == event.after["back"] == 3


def test_a_target_whose_disk_is_not_mounted(kept: Kept, second: Store) -> None:
    turn()
    Path(second.folder).rename(Path(second.folder).with_name("away"))
    Path(second.folder).mkdir()
    copy = turn()
    assert copy.fault_code == "StoreMissing"
    assert list(Path(second.folder).iterdir()) == [], "nothing is written where the disk should be"
    Copy.objects.update(turned=None)
    assert turn().fault_code == "StoreMissing", "nor by a first copy"


def test_wrong_clocks_of_stores_change_nothing(kept: Kept, second: Store) -> None:
    for step, path in enumerate(sorted(each for each in kept.folder.rglob("*") if each.is_file())):
        at = time.time() + (86_400 * 400 if step % 2 else -86_400 * 400)
        os.utime(path, (at, at))
    copy = turn()
    assert (copy.fault, copy.complete) == ("", True)
    assert row().copied_until == row().until


@pytest.mark.xdist_group("s3")
def test_wrong_credentials_of_a_bucket(kept: Kept, plain_s3: S3Server) -> None:
    where = plain_s3.new_prefix()
    assert where.credentials
    words = {"endpoint": where.endpoint, "bucket": where.bucket, "location": where.region}
    store = Store.objects.create(
        code="s3", name="Bucket", kind="s3", access_key=where.credentials.key_id, secret_key="wrong", **words
    )
    stores = RegionStores.objects.get()
    stores.second = store
    with pytest.raises(Refused, match="can't be used"):
        places.choose_stores(SYSTEM, chosen=stores)
    assert RegionStores.objects.get().second is None
    store.secret_key = where.credentials.secret
    store.save()
    places.choose_stores(SYSTEM, chosen=stores)
    Store.objects.filter(pk=store.pk).update(access_key="gone")
    copy = turn()
    assert copy.fault_code == "StoreDenied"
    assert "credentials" in copy.fault
    assert where.credentials.secret not in copy.fault
    Store.objects.filter(pk=store.pk).update(access_key=where.credentials.key_id)
    copy = turn()
    assert (copy.fault, copy.complete) == ("", True)
    assert names_in(Store.objects.get(pk=store.pk), kept.server) == kept.names()


# Repair, removal, change


def test_a_first_store_that_was_lost_is_repaired(kept: Kept, second: Store, tmp_path: Path) -> None:
    turn()
    before = kept.names()
    kept.folder.parent.rename(tmp_path / "lost")
    kept.folder.parent.mkdir()
    stores = RegionStores.objects.get()
    with pytest.raises(Refused, match="Test the connection"):
        verbs.repair_first(SYSTEM, stores=stores)
    places.check(SYSTEM, store=stores.first)
    stores.refresh_from_db()
    assert verbs.repair_first(SYSTEM, stores=RegionStores.objects.get()) == 1
    Copy.objects.filter(repair=False).update(next_turn=None)
    lease = leases.claim()
    assert lease is not None
    turns.run(lease)
    assert kept.names() == before
    repair = Copy.objects.get(repair=True)
    assert (repair.fault, repair.complete, repair.next_turn) == ("", True, None)
    assert AuditEvent.objects.filter(verb="backups.repaired").count() == 1
    assert row().copied_until is not None
    assert turn().complete, "and goes on to the second"


def test_a_second_store_that_was_lost_is_filled_anew(kept: Kept, second: Store, tmp_path: Path) -> None:
    turn()
    Path(second.folder).rename(tmp_path / "lost")
    Path(second.folder).mkdir()
    Store.objects.update(checked=None)
    with pytest.raises(Refused, match="Test the connection"):
        verbs.copy_anew(SYSTEM, stores=RegionStores.objects.get())
    places.check(SYSTEM, store=second)
    assert verbs.copy_anew(SYSTEM, stores=RegionStores.objects.get()) == 1
    assert (row().copied_until, RestorePoint.objects.filter(copied=None).count()) == (None, 3)
    assert turn().complete
    assert names_in(second, kept.server) == kept.names()


def test_another_second_store_begins_with_nothing(kept: Kept, second: Store, tmp_path: Path) -> None:
    turn()
    (tmp_path / "third").mkdir()
    stores = RegionStores.objects.get()
    stores.second = Store.objects.create(code="third", name="Third", kind="folder", folder=str(tmp_path / "third"))
    places.choose_stores(SYSTEM, chosen=stores)
    assert (row().copied_until, Copy.objects.count()) == (None, 0)
    assert turn().complete
    stores.second = None
    places.choose_stores(SYSTEM, chosen=stores)
    assert (row().copied_until, Copy.objects.count(), schedule.make_missing()) == (None, 0, 0)


def test_two_stores_in_one_place_are_refused(kept: Kept, second: Store) -> None:
    stores = RegionStores.objects.get()
    stores.second = Store.objects.create(code="same", name="Same", kind="folder", folder=f"{stores.first.folder}/")
    with pytest.raises(Refused, match="same place"):
        places.choose_stores(SYSTEM, chosen=stores)
    assert "this machine" in places.together(RegionStores.objects.get())


def test_a_deleted_servers_last_backup_is_copied_and_then_nothing(
    kept: Kept, second: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    Server.objects.update(deleted=timezone.now())
    copy = turn()
    assert (copy.complete, copy.next_turn) == (True, None)
    assert names_in(second, kept.server) == kept.names()
    at = timezone.now() + timedelta(days=90)
    monkeypatch.setattr(shelves, "now", lambda: at)
    with places.opened(second, kept.server.pk) as store:
        store.delete(names_in(second, kept.server))
    assert turn().next_turn is None
    assert names_in(second, kept.server) == set(), "what is over is not copied again"


def test_a_second_store_is_looked_through_too(kept: Kept, second: Store) -> None:
    assert shelves.make_missing() == 0
    turn()
    assert shelves.make_missing() == 1
    assert Shelf.objects.filter(store=second).exists()
