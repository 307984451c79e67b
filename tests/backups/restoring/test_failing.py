"""What goes wrong while a server is brought back, and what runs afterwards. The provider fails on command."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.utils import timezone

from accounts.models import User
from backups import recoveries
from backups.models import Restore
from backups.restoring import away, steps, verbs
from provisioning import services
from provisioning.engine import MAX_ATTEMPTS
from provisioning.models import Operation
from provisioning.providers.base import ProviderError, Recovering
from security.errors import KeySourceError
from tenants.models import Server
from tests.backups.restoring.restorable import bring_back, hour_ago, is_done, log, look, settled
from tests.provisioning.fakes import ScriptedProvider

pytestmark = pytest.mark.django_db(transaction=True)


def switch(alice: User, berry: Server) -> Restore:
    return verbs.restore(alice, server=berry, mode="switch", moment=hour_ago(), confirm=berry.server_name)


def beside(alice: User, berry: Server) -> Restore:
    return verbs.restore(alice, server=berry, mode="beside", moment=hour_ago())


@pytest.mark.parametrize("step", ["recover", "settle"])
def test_one_that_fails_again_and_again_is_given_up(
    berry: Server, provider: ScriptedProvider, alice: User, step: str
) -> None:
    row = switch(alice, berry)
    operation = look(row.operation)
    if step == "settle":
        is_done(provider, row)
        look(operation)
    asked = provider.calls.count("recover")
    provider.recovered[str(row.instance)] = Recovering("failed", code="DiskFull", text="The disk is full.", retry=True)
    for _ in range(4 * steps.MOST_FAILURES):
        look(operation)
    assert (operation.state, operation.error_code) == ("failed", "DiskFull"), log(operation)
    assert provider.calls.count("recover") - asked == steps.MOST_FAILURES - 1
    assert provider.calls[-1] == ("start" if step == "settle" else "recovering"), "and the server runs"
    services.retry_operation(alice, operation=operation)
    look(operation)
    assert operation.state == "queued", "who tries again has all tries"
    bring_back(provider, row)


def test_bytes_that_are_new_give_it_more_tries(berry: Server, provider: ScriptedProvider, alice: User) -> None:
    row = switch(alice, berry)
    operation = look(row.operation)
    for more in (100, 200, 150):
        provider.recovered[str(row.instance)] = Recovering("running", "base", more, 2000)
        look(operation)
        provider.recovered[str(row.instance)] = Recovering("failed", code="StoreAway", text="Away.", retry=True)
        look(operation, 2)
        row.refresh_from_db()
    assert (row.failures, row.failed_bytes) == (2, 200)


def test_after_its_exchange_a_restore_counts_also_if_it_failed(
    berry: Server, provider: ScriptedProvider, alice: User
) -> None:
    def fail() -> None:
        raise ProviderError("It does not answer.", code="Starting", retry=False)

    first = switch(alice, berry)
    look(first.operation)
    is_done(provider, first)
    look(first.operation)
    provider.faults["start"] = [fail]
    failed = look(first.operation)
    assert (failed.state, provider.exchanged) == ("failed", {str(first.instance): True})
    provider.known_since = {"locked": ["@mallory:berry"], "admins": ["@admin:berry"], "devices": [["@a:berry", "d"]]}
    later = verbs.restore(alice, server=berry, mode="beside", moment=hour_ago() + timedelta(minutes=30))
    look(later.operation)
    assert settled(provider, later) == {
        "sessions": "keep",
        "since": {"devices": [["@a:berry", "d"]]},
        "lock": ["@mallory:berry"],
    }, "the server has the older data, and knows nobody who came within that half hour"


@pytest.mark.parametrize("verb", ["since", "recover", "exchange"])
def test_when_the_change_over_fails_the_server_runs_again(
    berry: Server,
    provider: ScriptedProvider,
    alice: User,
    verb: str,
) -> None:
    def fail() -> None:
        raise ProviderError("The disk is full.", code="DiskFull", retry=False)

    row = switch(alice, berry)
    look(row.operation)
    is_done(provider, row)
    provider.faults[verb] = [fail]
    operation = look(row.operation, 2)
    assert (operation.state, operation.error_code) == ("failed", "DiskFull")
    assert provider.calls[-1] == "start"
    assert provider.exchanged == {}
    row.refresh_from_db()
    assert row.holds == "copy", "it can be switched to, or looked into"
    services.retry_operation(alice, operation=operation)
    assert look(operation, 2).state == "succeeded", operation.error


@pytest.mark.parametrize("verb", ["since", "recover", "exchange"])
def test_while_nobody_answers_the_change_over_waits_and_goes_on_by_itself(
    berry: Server, provider: ScriptedProvider, alice: User, verb: str
) -> None:
    def silent() -> None:
        raise ProviderError("Nobody answers.", code="AgentUnreachable")

    row = switch(alice, berry)
    look(row.operation)
    is_done(provider, row)
    started = provider.calls.count("start")
    provider.faults[verb] = [silent] * 3 * MAX_ATTEMPTS
    operation = look(row.operation, 2 * MAX_ATTEMPTS)
    assert len(provider.faults[verb]) < 2 * MAX_ATTEMPTS, "more tries than a step has that fails"
    assert (operation.state, operation.attempts) == ("queued", 0)
    assert operation.note.startswith("Nobody answers where the server runs. Next try in ")
    assert log(operation).count(away.TOLD) == 1
    assert provider.calls.count("start") - started == 1, (
        "of the instance, to try it; nobody starts the server meanwhile"
    )
    provider.faults.clear()
    bring_back(provider, row, operation)
    assert (row.holds, operation.note) == ("before", "")


def test_after_an_exchange_that_was_cut_off_it_waits_for_who_knows_of_it(
    berry: Server, provider: ScriptedProvider, alice: User
) -> None:
    row = switch(alice, berry)
    look(row.operation)
    is_done(provider, row)
    look(row.operation)

    def full() -> None:
        raise ProviderError("The disk is full.", code="DiskFull", retry=False)

    def silent() -> None:
        raise ProviderError("Nobody answers.", code="RegionUnreachable")

    provider.faults |= {"exchange": [full], "recovering": [lambda: None, silent]}
    operation = look(row.operation)
    assert operation.state == "queued", operation.error
    bring_back(provider, row, operation)
    assert row.holds == "before"


def test_pauses_grow_and_never_last_long(berry: Server, provider: ScriptedProvider, alice: User) -> None:
    def silent() -> None:
        raise ProviderError("Nobody answers.", code="AgentUnreachable")

    row = switch(alice, berry)
    look(row.operation)
    is_done(provider, row)
    provider.faults["exchange"] = [silent] * 9
    operation = look(row.operation, 3)
    assert len(provider.faults["exchange"]) < 9
    for lasted, pause in ((20, 10), (3600, 60)):
        operation.steps.filter(name="exchange").update(started=timezone.now() - timedelta(seconds=lasted))
        before = timezone.now()
        look(operation)
        assert operation.run_after is not None
        assert operation.run_after > before + timedelta(seconds=pause - 1)
    assert operation.run_after < timezone.now() + timedelta(seconds=61), "also when nobody answered for an hour"


@pytest.mark.parametrize("verb", ["since", "exchange"])
def test_after_a_fault_of_hearths_own_the_server_runs_again(
    berry: Server, provider: ScriptedProvider, alice: User, verb: str
) -> None:
    def fail() -> None:
        raise ValueError

    row = switch(alice, berry)
    look(row.operation)
    is_done(provider, row)
    provider.faults[verb] = [fail]
    operation = look(row.operation, 2)
    assert (operation.state, operation.error_code) == ("failed", "InternalError")
    assert provider.calls[-1] == "start"
    services.retry_operation(alice, operation=operation)
    assert look(operation, 2).state == "succeeded", operation.error


def test_a_server_is_not_stopped_while_its_secrets_stay_closed(
    berry: Server, provider: ScriptedProvider, alice: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    def closed(*_: object, **__: object) -> None:
        raise KeySourceError

    row = switch(alice, berry)
    look(row.operation)
    is_done(provider, row)
    with monkeypatch.context() as patch:
        patch.setattr(recoveries, "recovery", closed)
        operation = look(row.operation, 2)
        assert (operation.state, "stop" in provider.calls) == ("queued", False)
    bring_back(provider, row, operation)
    assert row.holds == "before"


def test_an_exchange_that_was_begun_and_not_told_goes_on(
    berry: Server, provider: ScriptedProvider, alice: User
) -> None:
    row = switch(alice, berry)
    look(row.operation)
    is_done(provider, row)

    def cut_off() -> None:
        provider.exchanged[str(row.instance)] = True
        raise ProviderError("The disk is full.", code="DiskFull", retry=False)

    provider.faults["exchange"] = [cut_off]
    operation = look(row.operation, 2)
    assert operation.state == "succeeded", operation.error
    assert provider.calls[-3:] == ["recovering", "configure", "start"]
    row.refresh_from_db()
    assert row.holds == "before"


def test_what_holds_something_else_than_is_known_is_not_removed(
    berry: Server, provider: ScriptedProvider, alice: User
) -> None:
    row = beside(alice, berry)
    bring_back(provider, row)
    provider.exchanged[str(row.instance)] = True
    removal = look(verbs.drop_copy(alice, restore=row))
    assert (removal.state, removal.error_code) == ("failed", "HoldsOther")
    assert "remove" not in provider.calls
    row.refresh_from_db()
    assert row.holds == "before"
    assert look(verbs.drop_copy(alice, restore=row)).state == "succeeded"


def test_what_fails_its_trial_for_good_does_not_run_on(berry: Server, provider: ScriptedProvider, alice: User) -> None:
    def fail() -> None:
        raise ProviderError("It does not answer.", code="Starting")

    row = beside(alice, berry)
    look(row.operation)
    is_done(provider, row)
    provider.faults["start"] = [fail] * MAX_ATTEMPTS
    look(row.operation, 2)
    assert "stop" not in provider.calls, "it is tried again"
    operation = look(row.operation, MAX_ATTEMPTS)
    assert (operation.state, operation.error_code) == ("failed", "Starting")
    assert provider.calls[-2:] == ["start", "stop"]
    services.retry_operation(alice, operation=operation)
    bring_back(provider, row, operation)
    assert row.holds == "copy"


def test_cancelled_in_its_trial_it_leaves_nothing_either(
    berry: Server, provider: ScriptedProvider, alice: User
) -> None:
    def cancel() -> None:
        services.cancel_operation(alice, operation=operation)

    row = switch(alice, berry)
    operation = look(row.operation)
    is_done(provider, row)
    provider.faults["start"] = [cancel]
    look(operation)
    assert operation.state == "cancelled"
    row.refresh_from_db()
    assert row.holds == "copy"
    look(Operation.objects.get(kind="drop"))
    row.refresh_from_db()
    assert (row.holds, "stop" in provider.calls) == ("gone", False)


def test_a_copy_that_was_stopped_for_a_switch_has_no_address(
    berry: Server, provider: ScriptedProvider, alice: User
) -> None:
    row = beside(alice, berry)
    bring_back(provider, row)
    operation = look(verbs.switch(alice, restore=row, confirm=berry.server_name))
    provider.recovered[str(row.instance)] = Recovering("failed", code="Damaged", text="It is damaged.")
    look(operation)
    row.refresh_from_db()
    assert (operation.state, row.holds, row.address) == ("failed", "copy", "")
