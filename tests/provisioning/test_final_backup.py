"""A server is backed up before it is removed or upgraded; when that can't be, that is said and nothing is risked."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from django.utils import timezone

from accounts.models import User
from audit.models import AuditEvent
from backups import retained, sync
from backups.engine.hearth import Fault, OrderReport, Report
from backups.models import Order, RegionStores, RestorePoint, ServerBackups, Store
from provisioning import engine, services
from provisioning.models import Operation, OperationStep, Region
from provisioning.providers.base import Observation
from tenants.models import Server
from tests.provisioning.fakes import ScriptedProvider

pytestmark = pytest.mark.django_db(transaction=True)

POINT = "20261120t120000z-00000000"
NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)


@pytest.fixture
def backed_up(server: Server, provider: ScriptedProvider) -> Server:
    """A server that runs and whose engine has just reported."""
    store = Store.objects.create(code="here", name="Here", kind="folder", folder="/var/backups/hearth")
    RegionStores.objects.create(region=Region.objects.get(code="local"), first=store)
    made = services.reconcile(server.pk)
    assert made is not None
    assert engine.run(made.pk)
    report(server)
    provider.calls.clear()
    return server


def report(server: Server, state: str = "", error: str = "", fault: Fault | None = None, done: int = 0) -> None:
    """What the engine says: how its open orders are, if `state` is given."""
    orders = sync.take(server.pk, Report(at=timezone.now())).orders
    told = tuple(
        OrderReport(id=each.id, state=state, done_bytes=done, error=error, point=POINT if state == "done" else "")  # type: ignore[arg-type]
        for each in orders
        if state
    )
    sync.take(server.pk, Report(at=timezone.now(), orders=told, fault=fault))


def begin(server: Server, **columns: object) -> Operation:
    """Want something else, and carry it out as far as it goes without an engine."""
    Server.objects.filter(pk=server.pk).update(generation=server.generation + 1, **columns)
    server.refresh_from_db()
    operation = services.reconcile(server.pk)
    assert operation is not None
    return look(operation)


def look(operation: Operation) -> Operation:
    """Let a worker look at the operation once."""
    Operation.objects.filter(pk=operation.pk).update(run_after=timezone.now() - timedelta(seconds=1))
    engine.run(operation.pk)
    operation.refresh_from_db()
    return operation


def age(operation: Operation, **by: float) -> None:
    """Let the step have waited."""
    ago = timezone.now() - timedelta(**by)
    OperationStep.objects.filter(operation=operation, state="running").update(started=ago)


def log(operation: Operation) -> str:
    return "\n".join(operation.events.values_list("message", flat=True))


DELETED = {"desired": "deleted", "delete_after": NOON}


def test_nothing_is_removed_before_the_final_backup_is_whole(backed_up: Server, provider: ScriptedProvider) -> None:
    operation = begin(backed_up, **DELETED)
    assert (operation.state, provider.calls) == ("queued", [])
    assert Order.objects.get().reason == "final"
    report(backed_up, "taken", done=200 * 2**20)
    for _ in range(7):  # more often than a step is tried
        look(operation)
    assert (operation.state, provider.calls) == ("queued", [])
    assert log(operation).count("Take a final backup") == 1
    assert "More than 192 MB are copied." in log(operation)
    report(backed_up, "done")
    look(operation)
    assert operation.state == "succeeded", operation.error
    assert provider.calls == ["stop", "remove"]
    assert f"The final backup is whole: {POINT}." in log(operation)


def test_an_engine_goes_on_after_a_final_backup_until_its_server_stops(backed_up: Server) -> None:
    begin(backed_up, **DELETED)
    assert [each.kind for each in sync.take(backed_up.pk, Report(at=NOON)).orders] == ["backup"]


def test_it_can_be_cancelled_while_it_waits(backed_up: Server, provider: ScriptedProvider, alice: User) -> None:
    operation = begin(backed_up, **DELETED)
    services.cancel_operation(alice, operation=operation)
    report(backed_up, "done")
    assert look(operation).state == "cancelled"
    assert provider.calls == []


def test_a_worker_that_dies_meanwhile_asks_no_second_time(backed_up: Server) -> None:
    operation = begin(backed_up, **DELETED)
    Operation.objects.update(attempts=1)  # as it is left behind
    look(operation)
    report(backed_up, "done")
    assert look(operation).state == "succeeded"
    assert Order.objects.count() == 1


def test_a_broken_server_is_removed_without_one_and_the_newest_point_stays(
    backed_up: Server, provider: ScriptedProvider
) -> None:
    point = RestorePoint.objects.create(
        server=backed_up, identity=POINT, kind="daily", at=timezone.now(), line="l", keep_until=timezone.now()
    )
    provider.observations[str(backed_up.pk)] = Observation(str(backed_up.pk), exists=True, reason="DatabaseDown")
    operation = begin(backed_up, **DELETED)
    age(operation, minutes=4)
    ServerBackups.objects.update(reported=timezone.now() - timedelta(minutes=4))
    look(operation)
    assert operation.state == "succeeded", operation.error
    assert "No final backup can be taken" in log(operation)
    assert AuditEvent.objects.get(verb="backups.without_final").after["newest"] == POINT
    point.refresh_from_db()
    assert point.keep_until is not None
    assert point.keep_until > timezone.now() + timedelta(days=29)
    assert retained.keep_keys_until(backed_up.organisation_id) == point.keep_until
    assert Order.objects.get().state == "failed"


def test_the_engine_is_away_but_the_server_is_not_so_nothing_is_removed(
    backed_up: Server, provider: ScriptedProvider
) -> None:
    provider.observations[str(backed_up.pk)] = Observation(str(backed_up.pk), exists=True, running=True)
    operation = begin(backed_up, **DELETED)
    age(operation, minutes=4)
    ServerBackups.objects.update(reported=timezone.now() - timedelta(minutes=4))
    look(operation)
    assert (operation.state, operation.error_code) == ("failed", "NoFinalBackup")
    assert "Nothing was removed" in operation.error
    assert provider.calls == ["observe"]


def test_a_store_that_is_full_stops_the_removal_and_it_is_tried_again(
    backed_up: Server, provider: ScriptedProvider, alice: User
) -> None:
    full = Fault("StoreFull", "The store is full.", timezone.now() - timedelta(minutes=11))
    operation = begin(backed_up, **DELETED)
    report(backed_up, fault=full)
    assert look(operation).state == "queued", "it may pass"
    age(operation, minutes=11)
    assert look(operation).state == "failed"
    assert "The store is full." in operation.error
    assert provider.calls == []
    services.retry_operation(alice, operation=operation)
    assert look(operation).state == "queued"
    report(backed_up, "done")
    assert look(operation).state == "succeeded"


def test_a_backup_that_never_ends_does_not_hold_it_for_ever(backed_up: Server) -> None:
    operation = begin(backed_up, **DELETED)
    age(operation, hours=13)
    assert look(operation).error_code == "NoFinalBackup"


def test_an_upgrade_begins_after_its_restore_point(backed_up: Server, provider: ScriptedProvider) -> None:
    daily = Order.objects.create(server=backed_up, kind="backup", reason="daily")
    operation = begin(backed_up, version="1.151.0")
    assert provider.calls == ["prepare"]
    assert Order.objects.get() == daily, "one after the other"
    report(backed_up, "done")
    look(operation)
    assert provider.calls == ["prepare"]
    assert Order.objects.filter(state="waiting").get().reason == "before-upgrade"
    report(backed_up, "done")
    look(operation)
    assert operation.state == "succeeded", operation.error
    assert provider.calls == ["prepare", "stop", "configure", "start"]


def test_without_a_restore_point_there_is_no_upgrade(
    backed_up: Server, provider: ScriptedProvider, alice: User
) -> None:
    operation = begin(backed_up, version="1.151.0")
    report(backed_up, "failed", error="The store is gone.")
    look(operation)
    assert (operation.state, operation.error_code) == ("failed", "NoRestorePoint")
    assert "The store is gone." in operation.error
    assert "stop" not in provider.calls
    services.retry_operation(alice, operation=operation)
    look(operation)
    report(backed_up, "done")
    assert look(operation).state == "succeeded", operation.error


def test_what_was_never_backed_up_is_removed_and_the_log_says_why(
    server: Server, provider: ScriptedProvider, make_server: Callable[..., Server]
) -> None:
    begin(server)
    operation = begin(server, **DELETED)
    assert operation.state == "succeeded"
    assert "this region has no store for backups" in log(operation)
    assert retained.keep_keys_until(uuid.uuid4()) is None
