"""Cancelling is honoured between steps while nobody can notice, and refused with a reason after that."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.db.models.functions import Now
from django.utils import timezone

from accounts.models import User
from audit.models import AuditEvent
from provisioning import engine, services
from provisioning.models import Operation, ServerStatus
from provisioning.providers.base import ProviderError
from tenants.errors import Refused
from tenants.models import Server
from tests.provisioning.fakes import ScriptedProvider

pytestmark = pytest.mark.django_db(transaction=True)


def queued(server: Server) -> Operation:
    operation = services.reconcile(server.pk)
    assert operation is not None
    return operation


def test_before_anybody_took_it(server: Server, provider: ScriptedProvider, alice: User) -> None:
    operation = services.cancel_operation(alice, operation=queued(server))
    assert operation.state == Operation.State.CANCELLED
    status = ServerStatus.objects.get(server=server)
    assert (status.phase, status.reason) == ("failed", "Cancelled")
    assert services.reconcile(server.pk) is None, "a cancelled operation is not made again by itself"
    assert not engine.run(operation.pk)
    assert provider.calls == []
    assert AuditEvent.objects.get(verb="operation.cancel").actor_id == alice.pk


def test_between_two_steps(server: Server, provider: ScriptedProvider, alice: User) -> None:
    operation = queued(server)

    def cancel() -> None:
        services.cancel_operation(alice, operation=operation)

    provider.faults["ensure_storage"] = [cancel]
    engine.run(operation.pk)
    operation.refresh_from_db()
    assert operation.state == Operation.State.CANCELLED
    assert provider.calls == ["prepare", "ensure_storage"]
    assert [step.state for step in operation.steps.all()] == ["done"] * 2 + ["skipped"] * 5


def test_while_it_waits_for_its_next_try(server: Server, provider: ScriptedProvider, alice: User) -> None:
    def fail() -> None:
        raise ProviderError("Not now.")

    operation = queued(server)
    provider.faults["prepare"] = [fail]
    engine.run(operation.pk)
    services.cancel_operation(alice, operation=operation)
    operation.refresh_from_db()
    assert operation.state == Operation.State.CANCELLED


def test_its_worker_died_meanwhile(server: Server, provider: ScriptedProvider, alice: User) -> None:
    operation = queued(server)
    Operation.objects.filter(pk=operation.pk).update(
        state="running", lease_owner="dead", lease_until=Now() - timedelta(seconds=1)
    )
    services.cancel_operation(alice, operation=operation)
    engine.run(operation.pk)
    operation.refresh_from_db()
    assert operation.state == Operation.State.CANCELLED
    assert provider.calls == []


def test_refused_once_the_server_was_started(server: Server, provider: ScriptedProvider, alice: User) -> None:
    operation = queued(server)
    refusals: list[str] = []

    def too_late() -> None:
        with pytest.raises(Refused) as refusal:
            services.cancel_operation(alice, operation=operation)
        refusals.append(refusal.value.message)

    provider.faults["start"] = [too_late]
    engine.run(operation.pk)
    operation.refresh_from_db()
    assert operation.state == Operation.State.SUCCEEDED
    assert "Delete the server instead" in refusals[0]


def test_refused_once_data_is_being_removed(server: Server, provider: ScriptedProvider, alice: User) -> None:
    engine.run(queued(server).pk)
    Server.objects.filter(pk=server.pk).update(desired="deleted", delete_after=timezone.now(), generation=2)
    operation = queued(server)
    provider.faults["stop"] = [lambda: None]
    refusals: list[str] = []

    def too_late() -> None:
        with pytest.raises(Refused) as refusal:
            services.cancel_operation(alice, operation=operation)
        refusals.append(refusal.value.message)

    provider.faults["remove"] = [too_late]
    engine.run(operation.pk)
    assert refusals
    server.refresh_from_db()
    assert server.deleted


def test_refused_when_it_is_over(server: Server, provider: ScriptedProvider, alice: User) -> None:
    operation = queued(server)
    engine.run(operation.pk)
    with pytest.raises(Refused, match="nothing to cancel"):
        services.cancel_operation(alice, operation=operation)


def test_a_cancelled_create_is_tried_again_by_a_person(server: Server, provider: ScriptedProvider, alice: User) -> None:
    operation = services.cancel_operation(alice, operation=queued(server))
    services.retry_operation(alice, operation=operation)
    engine.run(operation.pk)
    assert ServerStatus.objects.get(server=server).phase == "ready"


def test_a_cancelled_create_is_deleted_without_a_grace_period(
    server: Server, provider: ScriptedProvider, alice: User
) -> None:
    services.cancel_operation(alice, operation=queued(server))
    later = timezone.now() + timedelta(days=3)
    Server.objects.filter(pk=server.pk).update(desired="deleted", delete_after=later, generation=2)
    engine.run(queued(server).pk)
    server.refresh_from_db()
    assert server.deleted


def test_retry_is_refused_after_a_newer_change(server: Server, provider: ScriptedProvider, alice: User) -> None:
    first = services.cancel_operation(alice, operation=queued(server))
    Server.objects.filter(pk=server.pk).update(restarts=1, generation=2)
    with pytest.raises(Refused, match="changed after this"):
        services.retry_operation(alice, operation=first)
    engine.run(queued(server).pk)
    with pytest.raises(Refused, match="changed after this"):
        services.retry_operation(alice, operation=first)


def test_retry_is_refused_while_it_runs_and_when_it_is_done(
    server: Server, provider: ScriptedProvider, alice: User
) -> None:
    operation = queued(server)
    with pytest.raises(Refused, match="in progress"):
        services.retry_operation(alice, operation=operation)
    engine.run(operation.pk)
    with pytest.raises(Refused, match="done already"):
        services.retry_operation(alice, operation=operation)
