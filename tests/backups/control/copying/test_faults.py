"""Stores that are full, slow, away, old, wrong or lost, on both sides of a copy: it is told, and costs nothing."""

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
from backups import alerts, places
from backups.copying import leases, schedule, turns
from backups.engine import names
from backups.engine.replicate import Replication
from backups.engine.stores.base import StoreError
from backups.models import Alarm, Copy, RegionStores, RestorePoint, ServerBackups, Store
from tenants.errors import Refused
from tenants.models import Server
from tests.backups.control.copying.copies import MINUTE, names_in, row, turn
from tests.backups.control.looks import Kept
from tests.backups.s3_servers import S3Server
from tests.backups.stores.test_replicate import Troubled

pytestmark = pytest.mark.django_db


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
