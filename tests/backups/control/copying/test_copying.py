"""Each server's backups are copied to its region's second store by the clock; what it has is told honestly."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.db.models import F
from django.urls import reverse
from django.utils import timezone

from audit.models import AuditEvent
from audit.services import SYSTEM
from backups import alerts, expiring, places, shelves
from backups.copying import leases, schedule, selectors, turns, verbs
from backups.engine import names
from backups.engine.lacking import kind_of
from backups.models import Alarm, Copy, RegionStores, RestorePoint, ServerBackups, Shelf, Store
from tenants.errors import Refused
from tenants.models import Membership, Server
from tests.backups.control.copying.copies import MINUTE, names_in, row, turn
from tests.backups.control.looks import Kept
from tests.cast import client_for

pytestmark = pytest.mark.django_db


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
    assert (leases.claim(), schedule.wanted()) == (None, 0), "no worker is held by it"
    monkeypatch.setattr(schedule, "AT_ONCE", 1)
    assert schedule.pass_quiet() == 1, "as many passes as it takes"
    assert (row().copied_until, leases.claim()) == (row().media_until, None)
    Copy.objects.update(next_turn=timezone.now() - MINUTE)
    ServerBackups.objects.update(stored_bytes=2)
    assert schedule.pass_quiet() == 0
    ServerBackups.objects.update(stored_bytes=1)
    Copy.objects.update(turned=F("turned") - 2 * leases.LOOK)
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
    monkeypatch.setattr(turns, "database_time", lambda: at)
    with places.opened(second, kept.server.pk) as store:
        store.delete(names_in(second, kept.server))
    assert turn().next_turn is None
    assert names_in(second, kept.server) == set(), "what is over is not copied again"


def test_a_second_store_is_looked_through_too(kept: Kept, second: Store) -> None:
    assert shelves.make_missing() == 0
    turn()
    assert shelves.make_missing() == 1
    assert Shelf.objects.filter(store=second).exists()


def test_a_person_sees_what_the_second_store_has(kept: Kept, second: Store) -> None:
    page = client_for(Membership.objects.get(role="owner").user)
    address = reverse("server_backups", args=[kept.server.organisation.slug, kept.server.pk])
    assert "the first copy is under way" in page.get(address).content.decode()
    turn()
    shown = page.get(address).content.decode()
    assert "Far away has everything up to" in shown
    assert "to go" not in shown
    Copy.objects.update(fault="A secret place is away.")
    shown = page.get(address).content.decode()
    assert "go on just now" in shown
    assert "secret place" not in shown


# A plan that keeps less


def test_what_was_promised_is_kept_when_a_plan_keeps_less(server: Server, tmp_path: Path) -> None:
    """Nothing is removed before the day that was said when it was made; page and alarm tell so."""
    kept = Kept(server, tmp_path / "disk", 34)
    RestorePoint.objects.update(keep_until=F("at") + timedelta(days=90))
    before = {names.point(each.id) for each in kept.history.points}
    expiring.run(kept.shelf.pk)
    assert before <= kept.names()
    assert "gone" not in kept.states().values()
    shelf = Shelf.objects.get()
    assert shelf.promised == len(
        [each for each in kept.history.points if timezone.now() - each.at > timedelta(days=30)]
    )
    alerts.observe()
    assert f"now: {shelf.promised}." in Alarm.objects.get(cause="plan").text
    page = client_for(Membership.objects.get(role="owner").user)
    shown = page.get(reverse("server_backups", args=[server.organisation.slug, server.pk])).content.decode()
    assert "Nothing is removed early" in shown
    RestorePoint.objects.update(keep_until=F("at") + timedelta(days=30))
    expiring.run(kept.shelf.pk)
    assert "gone" in kept.states().values()
    alerts.observe()
    assert not Alarm.objects.filter(cause="plan").exists()
