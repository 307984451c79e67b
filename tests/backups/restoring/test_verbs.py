"""Bringing a server back: the verbs and their operations, with a provider that fails on command."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest
from django.utils import timezone

from accounts.models import User
from audit.models import AuditEvent
from backups.models import Restore, RestorePoint
from backups.restoring import upkeep, verbs
from provisioning import services
from provisioning.models import Operation, ServerStatus
from provisioning.observer import deciding_operations
from provisioning.providers.base import ProviderError, Recovering
from provisioning.status_writer import deciding_operation
from security.models import UnwrapGrant
from tenants.errors import Refused
from tenants.models import Server
from tests.backups.restoring.restorable import bring_back, hour_ago, is_done, log, look, settled
from tests.provisioning.fakes import ScriptedProvider

pytestmark = pytest.mark.django_db(transaction=True)


def switch(alice: User, berry: Server) -> Restore:
    return verbs.restore(alice, server=berry, mode="switch", moment=hour_ago(), confirm=berry.server_name)


def beside(alice: User, berry: Server) -> Restore:
    return verbs.restore(alice, server=berry, mode="beside", moment=hour_ago())


def live_grants() -> int:
    return UnwrapGrant.objects.filter(revoked_at=None).count()


def test_a_server_is_replaced_only_after_what_was_brought_back_has_answered(
    berry: Server,
    provider: ScriptedProvider,
    alice: User,
) -> None:
    provider.known_since = {"locked": ["@mallory:berry"], "sequences": {"events_stream_seq": 5}}
    row = switch(alice, berry)
    operation = look(row.operation)
    row.refresh_from_db()
    assert (operation.state, provider.calls) == ("queued", ["prepare", "recovering", "since", "recover"])
    recovery = provider.recoveries[str(row.instance)]
    assert recovery.request["to"] == row.moment.isoformat()  # type: ignore[union-attr]
    assert settled(provider, row) == {"sessions": "keep", "since": provider.known_since}
    assert recovery.request["settle"]["moment"] == recovery.request["to"]
    assert recovery.request["grant"] == str(row.grant)
    assert (live_grants(), UnwrapGrant.objects.get().target) == (1, berry.pk)
    spec = provider.specs[str(row.instance)]
    assert (spec.federation, spec.pushes, spec.backup, spec.server_name) == (False, False, {}, berry.server_name)

    provider.recovered[str(row.instance)] = Recovering("running", "base", 500, 2000, seconds_left=200)
    look(operation)
    assert "about 3 minutes left" in operation.note
    provider.calls.clear()
    is_done(provider, row)
    look(operation)  # the trial, and then it asks the stopped server once more
    assert provider.calls == ["recovering", "configure", "start", "stop", "since", "recover"]
    assert [each is None for each in provider.asked_under] == [True, False], "it is only closed once it was stopped"
    look(operation)
    assert provider.calls[6:] == ["recovering", "exchange", "configure", "start"]
    assert operation.state == "succeeded", operation.error
    row.refresh_from_db()
    assert (row.holds, provider.exchanged) == ("before", {str(row.instance): True})
    assert row.keep_until is not None
    assert row.keep_until > timezone.now() + timedelta(days=6)
    assert row.seconds is not None
    assert live_grants() == 0
    assert AuditEvent.objects.get(verb="server.restore").after["mode"] == "switch"
    own = provider.specs[str(berry.pk)]
    assert (own.federation, own.pushes) == (True, True), "the server itself is what it was"


def test_and_back_again(berry: Server, provider: ScriptedProvider, alice: User) -> None:
    row = switch(alice, berry)
    bring_back(provider, row)
    provider.known_since = {"locked": ["@mallory:berry"], "admins": ["@admin:berry"], "devices": [["@a:berry", "d"]]}
    with pytest.raises(Refused, match="not the name"):
        verbs.go_back(alice, restore=row, confirm="berry")
    back = verbs.go_back(alice, restore=row, confirm=berry.server_name)
    provider.calls.clear()
    look(back)
    assert provider.calls == ["stop", "since", "recover"], "clients have seen more since then"
    assert settled(provider, row) == {
        "sessions": "keep",
        "since": {"devices": [["@a:berry", "d"]]},
        "lock": ["@mallory:berry"],
    }, "whom the restored server never knew stays locked, or admin"
    row.refresh_from_db()
    moment, switched = row.moment, row.switched
    assert moment is not None
    assert switched is not None
    counted = datetime.fromisoformat(provider.recoveries[str(row.instance)].request["settle"]["moment"])
    assert switched - counted > 2 * (switched - moment), "what was restored went ahead twice"
    look(back)
    assert back.state == "succeeded", back.error
    row.refresh_from_db()
    assert (row.holds, row.switched, provider.exchanged) == ("copy", None, {str(row.instance): False})
    with pytest.raises(Refused, match="not kept any more"):
        verbs.go_back(alice, restore=row, confirm=berry.server_name)


def test_who_was_restored_before_unlocks_nobody_whom_it_never_knew(
    berry: Server, provider: ScriptedProvider, alice: User
) -> None:
    first = switch(alice, berry)
    bring_back(provider, first)
    said = {"locked": ["@mallory:berry"], "admins": ["@admin:berry"], "devices": [["@a:berry", "d"]]}
    provider.known_since = said
    later = verbs.restore(alice, server=berry, mode="beside", moment=hour_ago() + timedelta(minutes=30))
    look(later.operation)
    assert settled(provider, later) == {
        "sessions": "keep",
        "since": {"devices": [["@a:berry", "d"]]},
        "lock": ["@mallory:berry"],
    }, "accounts that were made within that half hour it does not know"
    services.cancel_operation(alice, operation=later.operation)
    look(Operation.objects.get(kind="drop"))
    earlier = verbs.restore(alice, server=berry, mode="beside", moment=hour_ago() - timedelta(minutes=30))
    look(earlier.operation)
    settle = settled(provider, earlier)
    assert settle == {"sessions": "keep", "since": said}, "whom that moment knew, it knows too"


def test_the_newest_restore_is_gone_back_from_first(berry: Server, provider: ScriptedProvider, alice: User) -> None:
    first, second = switch(alice, berry), None
    bring_back(provider, first)
    second = switch(alice, berry)
    bring_back(provider, second)
    with pytest.raises(Refused, match="newest restore first"):
        verbs.go_back(alice, restore=first, confirm=berry.server_name)
    look(verbs.go_back(alice, restore=second, confirm=berry.server_name), 2)
    look(verbs.go_back(alice, restore=first, confirm=berry.server_name), 2)
    assert provider.exchanged == {str(first.instance): False, str(second.instance): False}


def test_a_copy_beside_is_looked_into_switched_to_and_removed(
    berry: Server,
    provider: ScriptedProvider,
    alice: User,
) -> None:
    row = beside(alice, berry)
    operation = bring_back(provider, row)
    assert (operation.kind, row.holds, row.address) == ("copy", "copy", provider.url)
    assert "stop" not in provider.calls
    with pytest.raises(Refused, match="not the name"):
        verbs.switch(alice, restore=row, confirm="")
    changed = look(verbs.switch(alice, restore=row, confirm=berry.server_name), 2)
    assert changed.state == "succeeded", changed.error
    row.refresh_from_db()
    assert (row.holds, row.address) == ("before", "")
    removed = look(verbs.drop_copy(alice, restore=row))
    assert removed.state == "succeeded", removed.error
    row.refresh_from_db()
    assert (row.holds, row.keep_until, provider.calls[-1]) == ("gone", None, "remove")
    with pytest.raises(Refused, match="removed already"):
        verbs.drop_copy(alice, restore=row)


def test_what_the_version_was_runs_again_and_stays(berry: Server, provider: ScriptedProvider, alice: User) -> None:
    RestorePoint.objects.update(synapse_version="1.149.1")
    before = berry.version
    row = switch(alice, berry)
    bring_back(provider, row)
    berry.refresh_from_db()
    status = ServerStatus.objects.get(server=berry)
    assert (berry.version, status.applied["version"], row.version_before) == ("1.149.1", "1.149.1", before)
    assert services.reconcile(berry.pk) is None, "nothing undoes what was just restored"
    look(verbs.go_back(alice, restore=row, confirm=berry.server_name), 2)
    berry.refresh_from_db()
    assert berry.version == before
    assert services.reconcile(berry.pk) is None


def test_what_else_was_wanted_meanwhile_comes_after(berry: Server, provider: ScriptedProvider, alice: User) -> None:
    RestorePoint.objects.update(synapse_version="1.149.1")
    row = switch(alice, berry)
    look(row.operation)
    Server.objects.filter(pk=berry.pk).update(users=7, generation=berry.generation + 1)
    bring_back(provider, row)
    following = Operation.objects.filter(server=berry, kind="configure").get()
    assert following.state == "succeeded"
    assert ServerStatus.objects.get(server=berry).applied["users"] == 7


def test_a_restore_that_fails_says_so_and_touches_nothing(
    berry: Server,
    provider: ScriptedProvider,
    alice: User,
) -> None:
    row = switch(alice, berry)
    operation = look(row.operation)
    text = "media/x is damaged. Nothing that ran before was touched."
    provider.recovered[str(row.instance)] = Recovering("failed", code="Damaged", text=text)
    look(operation)
    assert (operation.state, operation.error_code, operation.error) == ("failed", "Damaged", text)
    assert not {"stop", "exchange"} & set(provider.calls)
    assert live_grants() == 0
    assert ServerStatus.objects.get(server=berry).phase == "ready"
    row.refresh_from_db()
    assert row.keep_until is not None, "what was fetched is removed a day later"
    services.retry_operation(alice, operation=operation)
    provider.recovered[str(row.instance)] = Recovering("running")
    look(operation)
    assert live_grants() == 1
    bring_back(provider, row)


def test_one_that_can_pass_is_tried_again_under_the_same_grant(
    berry: Server,
    provider: ScriptedProvider,
    alice: User,
) -> None:
    row = switch(alice, berry)
    operation = look(row.operation)
    provider.recovered[str(row.instance)] = Recovering(
        "failed", code="StoreAway", text="The store is away.", retry=True
    )
    look(operation)
    assert operation.state == "queued"
    look(operation)
    assert provider.calls.count("recover") == 2
    assert UnwrapGrant.objects.count() == 1


def test_a_grant_that_ended_is_followed_by_another(berry: Server, provider: ScriptedProvider, alice: User) -> None:
    row = switch(alice, berry)
    operation = look(row.operation)
    provider.recovered[str(row.instance)] = Recovering("running")
    look(operation, 3)
    assert provider.calls.count("recover") == 1
    UnwrapGrant.objects.update(expires_at=timezone.now() - timedelta(seconds=1))  # nobody renewed it for long
    look(operation)
    row.refresh_from_db()
    assert provider.calls.count("recover") == 2
    assert UnwrapGrant.objects.get(revoked_at=None).pk == row.grant


def test_cancelled_it_leaves_nothing(berry: Server, provider: ScriptedProvider, alice: User) -> None:
    row = switch(alice, berry)
    operation = look(row.operation)
    services.cancel_operation(alice, operation=operation)
    operation.refresh_from_db()
    assert operation.state == "cancelled"
    assert "The server was not touched" in log(operation)
    assert live_grants() == 0
    removal = Operation.objects.get(kind="drop")
    look(removal)
    row.refresh_from_db()
    assert (removal.state, row.holds) == ("succeeded", "gone")
    assert {"cancel_recovery", "remove"} <= set(provider.calls)


def test_it_can_not_be_cancelled_once_the_server_is_stopped(
    berry: Server,
    provider: ScriptedProvider,
    alice: User,
) -> None:
    row = switch(alice, berry)
    look(row.operation)
    is_done(provider, row)
    operation = look(row.operation)
    assert provider.calls[-1] == "recover"
    with pytest.raises(Refused, match="you can go back"):
        services.cancel_operation(alice, operation=operation)


def test_a_server_that_is_deleted_meanwhile_ends_it(berry: Server, provider: ScriptedProvider, alice: User) -> None:
    row = switch(alice, berry)
    operation = look(row.operation)
    Server.objects.filter(pk=berry.pk).update(desired="deleted", delete_after=timezone.now())
    look(operation)
    assert operation.error_code == "ServerDeleted"
    with pytest.raises(Refused, match="being deleted"):
        switch(alice, berry)


def test_a_removed_server_leaves_no_copy(berry: Server, provider: ScriptedProvider, alice: User) -> None:
    row = beside(alice, berry)
    bring_back(provider, row)
    wanted = {"desired": "deleted", "delete_after": timezone.now(), "generation": berry.generation + 1}
    Server.objects.filter(pk=berry.pk).update(**wanted)
    removal = services.reconcile(berry.pk)
    assert removal is not None
    removal.steps.filter(name="final").update(state="done")
    look(removal)
    assert removal.state == "succeeded", removal.error
    row.refresh_from_db()
    assert (row.holds, provider.calls[-2:]) == ("gone", ["remove", "remove"])


def test_copies_go_when_their_time_is_over(berry: Server, provider: ScriptedProvider, alice: User) -> None:
    row = beside(alice, berry)
    bring_back(provider, row)
    assert upkeep.tidy() == 0
    Restore.objects.update(keep_until=timezone.now())
    assert (upkeep.tidy(), upkeep.tidy()) == (1, 0)
    look(Operation.objects.get(kind="drop"))
    row.refresh_from_db()
    assert row.holds == "gone"
    assert upkeep.tidy() == 0


def test_not_more_copies_are_kept_than_so_many(
    berry: Server, provider: ScriptedProvider, alice: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verbs, "MOST_KEPT", 1)
    row = beside(alice, berry)
    bring_back(provider, row)
    with pytest.raises(Refused, match="Remove one of them first"):
        beside(alice, berry)
    look(verbs.drop_copy(alice, restore=row))
    bring_back(provider, beside(alice, berry))


def test_what_failed_before_a_copy_still_stands_after_it(
    berry: Server, provider: ScriptedProvider, alice: User
) -> None:
    def fail() -> None:
        raise ProviderError("The disk is full.", code="DiskFull", retry=False)

    provider.faults["configure"] = [fail]
    Server.objects.filter(pk=berry.pk).update(users=7, generation=berry.generation + 1)
    failed = services.reconcile(berry.pk)
    assert failed is not None
    look(failed)
    bring_back(provider, beside(alice, berry))
    berry.refresh_from_db()
    assert deciding_operation(berry) == failed
    assert deciding_operations([berry.pk]) == {berry.pk: failed}
    services.retry_operation(alice, operation=failed)
    look(failed)
    assert ServerStatus.objects.get(server=berry).applied["users"] == 7


def test_a_failed_restore_stands_until_its_rest_is_removed(
    berry: Server, provider: ScriptedProvider, alice: User
) -> None:
    row = beside(alice, berry)
    look(row.operation)
    provider.recovered[str(row.instance)] = Recovering("failed", code="Damaged", text="It is damaged.")
    look(row.operation)
    assert deciding_operation(berry) == row.operation
    look(verbs.drop_copy(alice, restore=row))
    assert deciding_operation(berry) is None
    with pytest.raises(Refused, match="changed after this"):
        services.retry_operation(alice, operation=row.operation)
