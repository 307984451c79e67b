"""Operations are carried out once, in steps, by whoever holds the lease."""

from __future__ import annotations

import pytest

from provisioning import engine, services
from provisioning.models import Operation, ServerSecret, ServerStatus
from provisioning.providers.base import ProviderError
from tenants.models import Server
from tests.provisioning.fakes import ScriptedProvider, Stub

pytestmark = pytest.mark.django_db(transaction=True)


def carry_out(server: Server) -> Operation:
    operation = services.reconcile(server.pk)
    assert operation is not None
    assert engine.run(operation.pk)
    operation.refresh_from_db()
    return operation


def values(server: Server) -> list[str]:
    return [str(secret.value) for secret in ServerSecret.objects.filter(server=server)]


def change(server: Server, **columns: object) -> Server:
    """Want something else, without a message to anybody."""
    Server.objects.filter(pk=server.pk).update(generation=server.generation + 1, **columns)
    server.refresh_from_db()
    return server


def test_it_works(server: Server, provider: ScriptedProvider) -> None:
    operation = carry_out(server)
    assert operation.state == Operation.State.SUCCEEDED, operation.error
    assert provider.calls == ["prepare", "ensure_storage", "configure", "start"]
    status = ServerStatus.objects.get(server=server)
    assert (status.phase, status.reason, status.observed_generation) == ("ready", "", 1)
    assert status.homeserver_url == provider.url
    assert status.signing_key_id.startswith("ed25519:a_")
    assert Stub.users["hearth-service"]["user_type"] == "support"
    assert [step.state for step in operation.steps.all()] == ["done"] * 7


def test_the_password_is_the_one_that_was_set(server: Server, provider: ScriptedProvider) -> None:
    carry_out(server)
    assert ServerSecret.objects.get(server=server, name="admin_password").value == Stub.users["admin"]["password"]


def test_no_secret_reaches_the_log(server: Server, provider: ScriptedProvider) -> None:
    def quote() -> None:
        raise ProviderError("Refused: " + " ".join(values(server)), retry=False)

    provider.faults["start"] = [quote]
    operation = carry_out(server)
    text = operation.error + "".join(operation.events.values_list("message", flat=True))
    assert "[signing_key]" in text
    for value in values(server):
        assert value not in text
        assert value.split(" ")[-1] not in text


def test_a_step_that_fails_in_passing_is_tried_again(server: Server, provider: ScriptedProvider) -> None:
    def fail() -> None:
        raise ProviderError("The package index did not answer.", code="IndexUnreachable")

    provider.faults["prepare"] = [fail, fail]
    operation = carry_out(server)
    assert operation.state == Operation.State.QUEUED
    while engine.run(operation.pk):
        pass
    operation.refresh_from_db()
    assert operation.state == Operation.State.SUCCEEDED
    assert provider.calls[:4] == ["prepare", "prepare", "prepare", "ensure_storage"]
    assert operation.events.filter(level="warning", message__contains="did not answer").count() == 2


def test_tries_are_bounded_and_the_failure_has_a_reason(server: Server, provider: ScriptedProvider) -> None:
    def fail() -> None:
        raise ProviderError("The package index did not answer.", code="IndexUnreachable")

    provider.faults["prepare"] = [fail] * 99
    operation = carry_out(server)
    while engine.run(operation.pk):
        pass
    operation.refresh_from_db()
    assert (operation.state, operation.error_code) == ("failed", "IndexUnreachable")
    assert provider.calls == ["prepare"] * engine.MAX_ATTEMPTS
    status = ServerStatus.objects.get(server=server)
    assert (status.phase, status.reason) == ("failed", "IndexUnreachable")
    assert services.reconcile(server.pk) is None, "a failed operation waits for a person"


def test_a_crash_is_not_a_failure_and_shows_no_traceback(server: Server, provider: ScriptedProvider) -> None:
    def crash() -> None:
        raise ZeroDivisionError("internal detail 4711")

    provider.faults["configure"] = [crash]
    operation = carry_out(server)
    assert (operation.state, operation.error_code) == ("failed", "InternalError")
    assert "4711" not in operation.error + "".join(operation.events.values_list("message", flat=True))
    assert "Try again" in operation.error


def test_retry_goes_on_with_the_step_that_failed(server: Server, provider: ScriptedProvider, alice: object) -> None:
    def fail() -> None:
        raise ProviderError("The disk is full.", code="DiskFull", retry=False)

    provider.faults["configure"] = [fail]
    operation = carry_out(server)
    assert operation.state == Operation.State.FAILED
    services.retry_operation(alice, operation=operation)
    engine.run(operation.pk)
    operation.refresh_from_db()
    assert operation.state == Operation.State.SUCCEEDED
    assert provider.calls == ["prepare", "ensure_storage", "configure", "configure", "start"]


def test_a_step_cut_off_is_done_again_with_the_same_keys(server: Server, provider: ScriptedProvider) -> None:
    seen: list[str] = []

    def cut_off() -> None:
        seen.append(str(ServerSecret.objects.get(server=server, name="signing_key").value))
        raise ProviderError("cut off")

    provider.faults["configure"] = [cut_off, cut_off]
    operation = carry_out(server)
    while engine.run(operation.pk):
        pass
    assert set(seen) == {provider.specs[str(server.pk)].secrets["signing_key"]}


def test_accounts_cut_off_after_the_registration(server: Server, provider: ScriptedProvider) -> None:
    Stub.users["admin"] = {"password": "of the first try"}
    operation = carry_out(server)
    assert operation.state == Operation.State.SUCCEEDED, operation.error
    assert ServerSecret.objects.get(server=server, name="admin_password").value == Stub.users["admin"]["password"]


def test_ready_needs_the_checks(server: Server, provider: ScriptedProvider) -> None:
    Stub.broken = True
    operation = carry_out(server)
    while engine.run(operation.pk):
        pass
    operation.refresh_from_db()
    assert (operation.state, operation.error_code) == ("failed", "HomeserverError")
    assert ServerStatus.objects.get(server=server).phase == "failed"


def test_a_delete_during_create_wins_in_the_end(server: Server, provider: ScriptedProvider) -> None:
    def delete() -> None:
        change(server, desired="deleted", delete_after=server.created)

    provider.faults["start"] = [delete]
    carry_out(server)
    server.refresh_from_db()
    assert server.deleted
    assert provider.calls[-2:] == ["stop", "remove"]
    assert provider.specs == {}
    assert not ServerSecret.objects.filter(server=server).exists()
    assert ServerStatus.objects.get(server=server).phase == "deleted"


def test_the_fence_rises_from_one_operation_to_the_next(server: Server, provider: ScriptedProvider) -> None:
    first = carry_out(server)
    second = carry_out(change(server, restarts=1))
    assert second.kind == "restart"
    assert second.fence > first.fence


@pytest.mark.parametrize(
    ("columns", "kind", "calls"),
    [
        ({"restarts": 1}, "restart", ["stop", "start"]),
        ({"users": 200}, "configure", ["configure", "start"]),
        ({"version": "1.151.0"}, "upgrade", ["prepare", "stop", "configure", "start"]),
        ({"desired": "suspended", "suspend_message": "Closed."}, "suspend", ["configure", "start"]),
        ({"password_resets": 1}, "password", []),
        ({"desired": "deleted"}, "delete", ["stop", "remove"]),
    ],
)
def test_each_verb(
    server: Server, provider: ScriptedProvider, columns: dict[str, object], kind: str, calls: list[str]
) -> None:
    carry_out(server)
    provider.calls.clear()
    operation = carry_out(change(server, **columns))
    assert (operation.kind, operation.state, provider.calls) == (kind, "succeeded", calls), operation.error
    assert ServerStatus.objects.get(server=server).observed_generation == 2
    assert services.reconcile(server.pk) is None


def test_suspend_then_resume(server: Server, provider: ScriptedProvider) -> None:
    carry_out(server)
    carry_out(change(server, desired="suspended", suspend_message="Closed."))
    spec = provider.specs[str(server.pk)]
    assert (spec.suspended, spec.suspend_message) == (True, "Closed.")
    assert ServerStatus.objects.get(server=server).phase == "suspended"
    operation = carry_out(change(server, desired="running", suspend_message=""))
    assert operation.kind == "resume"
    assert not provider.specs[str(server.pk)].suspended
    assert ServerStatus.objects.get(server=server).phase == "ready"
