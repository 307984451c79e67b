"""What goes by itself, what is raced for, and what a worker leaves behind that is killed."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import pytest
from django.db.models.functions import Now
from django.urls import reverse
from django.utils import timezone

from accounts.models import User
from backups import alerts
from backups.models import Alarm, Line, Restore, RestorePoint, ServerBackups
from backups.proofs import schedule
from backups.proofs.models import Proof
from backups.restoring import choices, steps, upkeep, verbs
from provisioning import leases, services
from provisioning.models import Operation, Region
from provisioning.providers.base import ProviderError
from security.models import UnwrapGrant
from tenants.errors import Refused
from tenants.models import Server
from tests.backups.restoring.restorable import LINE, bring_back, hour_ago, is_done, look
from tests.cast import client_for, make_user
from tests.provisioning.fakes import ScriptedProvider
from tests.provisioning.test_leases import in_threads

pytestmark = pytest.mark.django_db(transaction=True)


class Killed(BaseException):
    """The worker is gone, in the middle of whatever it did."""


def restore(alice: User, berry: Server) -> Restore:
    return verbs.restore(alice, server=berry, mode="switch", moment=hour_ago(), confirm=berry.server_name)


def test_of_two_restores_at_once_one_is_refused(berry: Server, alice: User) -> None:
    def ask() -> str:
        try:
            restore(alice, berry)
        except Refused as refusal:
            return refusal.message
        return ""

    answers = sorted(str(each) for each in in_threads(2, ask))
    assert answers[0] == ""
    assert "Something else is being done" in answers[1]
    assert Restore.objects.count() == 1


@pytest.mark.parametrize("moment", ["recover", "exchange"])
def test_a_killed_worker_is_followed_by_another(
    berry: Server, provider: ScriptedProvider, alice: User, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    row = restore(alice, berry)
    operation = row.operation
    if moment == "exchange":
        look(operation)
        is_done(provider, row)
        look(operation)
    # What the provider was asked for has happened, and nobody could write it down.
    with monkeypatch.context() as patch:
        patch.setattr(steps, "_save" if moment == "recover" else "_exchanged", _killed)
        patch.setattr(leases, "from_now", lambda _: Now() - timedelta(seconds=1))
        with pytest.raises(Killed):
            look(operation)
    bring_back(provider, row)
    assert provider.exchanged == {str(row.instance): True}
    assert row.holds == "before"
    assert UnwrapGrant.objects.filter(revoked_at=None).count() == 0


def _killed(*_: object, **__: object) -> None:
    raise Killed


def test_a_grant_that_outlived_its_operation_is_ended(berry: Server, alice: User) -> None:
    row = restore(alice, berry)
    look(row.operation)
    upkeep.tidy()
    assert UnwrapGrant.objects.filter(revoked_at=None).count() == 1
    Operation.objects.update(state="failed", finished=timezone.now())  # as by somebody's hand
    upkeep.tidy()
    assert UnwrapGrant.objects.filter(revoked_at=None).count() == 0


def test_a_copy_that_can_not_be_removed_is_tried_again_later_and_not_at_once(
    berry: Server, provider: ScriptedProvider, alice: User
) -> None:
    def fail() -> None:
        raise ProviderError("The machine is away.", code="Away", retry=False)

    bring_back(provider, restore(alice, berry))
    Restore.objects.update(keep_until=timezone.now())
    assert upkeep.tidy() == 1
    provider.faults["remove"] = [fail]
    look(Operation.objects.get(kind="drop"))
    assert upkeep.tidy() == 0
    Operation.objects.filter(kind="drop").update(finished=timezone.now() - upkeep.AGAIN)
    assert upkeep.tidy() == 1
    look(Operation.objects.filter(kind="drop").latest("created"))
    assert Restore.objects.get().holds == "gone"


def test_an_upgrade_since_the_restore_point_decides_what_runs(berry: Server) -> None:
    RestorePoint.objects.update(synapse_version="1.149.1")
    base = RestorePoint.objects.latest("at")

    def upgraded(version: str, begun: float, hours: float | None, state: str = "succeeded") -> None:
        started = base.at + timedelta(hours=begun)
        finished = None if hours is None else started + timedelta(hours=hours)
        Operation.objects.create(
            server=berry, kind="upgrade", generation=1, state=state, wanted={"version": version}, run_after=Now(),
            started=started, finished=finished,
        )  # fmt: skip

    def version(after: float) -> str:
        return choices.choose(berry, moment=base.at + timedelta(hours=after)).version

    assert version(1) == "1.149.1"
    upgraded("1.156.0", 2, 1)
    assert version(1) == "1.149.1"
    assert version(2.5) == "1.156.0", "in the middle of it: what is newer opens both"
    assert version(4) == "1.156.0"
    upgraded("1.149.1", 5, 1)
    assert (version(5.5), version(7)) == ("1.156.0", "1.149.1")
    upgraded("1.163.2", 8, 1, state="failed")
    assert version(10) == "1.163.2", "nobody knows how far it came"


def test_a_version_that_is_no_more_is_followed_by_the_next(berry: Server) -> None:
    RestorePoint.objects.update(synapse_version="1.150.3")
    assert choices.choose(berry, moment=hour_ago()).version == "1.156.0"
    RestorePoint.objects.update(synapse_version="9.0.0")
    with pytest.raises(Refused, match="Hearth has nothing as new"):
        choices.choose(berry, moment=hour_ago())


def test_how_long_it_takes_is_told_from_what_it_took(berry: Server, provider: ScriptedProvider, alice: User) -> None:
    point = RestorePoint.objects.latest("at")
    assert choices.choose(berry, point=point.identity).seconds is None
    bring_back(provider, restore(alice, berry))
    Restore.objects.update(total_bytes=10**6, seconds=30)
    choice = choices.choose(berry, point=point.identity)
    assert (choice.bytes, choice.seconds, choice.duration) == (2 * 10**6, 60, "About a minute.")


def test_servers_from_before_there_were_backups_get_their_engine_once(
    berry: Server, make_server: Callable[..., Server], provider: ScriptedProvider
) -> None:
    old = make_server("old")
    look(_made(old))
    ServerBackups.objects.filter(server=old).delete()
    assert upkeep.begin_missing_engines() == 0, "it is new: its own operation does it"
    Server.objects.update(created=timezone.now() - timedelta(days=9))
    assert (upkeep.begin_missing_engines(), upkeep.begin_missing_engines()) == (1, 0)
    operation = Operation.objects.get(server=old, kind="configure")
    assert look(operation).state == "succeeded"
    assert provider.specs[str(old.pk)].backup
    assert upkeep.begin_missing_engines() == 0


def _made(server: Server) -> Operation:
    operation = services.reconcile(server.pk)
    assert operation is not None
    return operation


def test_history_that_a_restore_ended_is_no_alarm(berry: Server, provider: ScriptedProvider, alice: User) -> None:
    bring_back(provider, restore(alice, berry))
    done = Operation.objects.get(kind="restore")
    assert done.finished is not None
    Line.objects.filter(identity=LINE).update(ended="OtherDatabase", until=done.created)
    alerts.observe()
    assert not Alarm.objects.filter(cause="gap").exists()
    Line.objects.filter(identity=LINE).update(until=done.finished + timedelta(seconds=1))
    alerts.observe()
    assert Alarm.objects.filter(cause="gap").exists()


def test_staff_see_restores(berry: Server, provider: ScriptedProvider, alice: User) -> None:
    bring_back(provider, restore(alice, berry))
    staff = client_for(make_user("staff@example.org", staff=True))
    page = staff.get("/admin/backups/restore/").content.decode()
    assert berry.server_name in page
    assert staff.get(f"/admin/backups/restore/{Restore.objects.get().pk}/change/").status_code == 200


def test_where_nothing_can_be_brought_back_nobody_is_offered_it_and_nothing_is_tried(
    berry: Server, alice: User
) -> None:
    Region.objects.update(provider="kubernetes")
    ServerBackups.objects.update(next_proof=timezone.now())
    assert schedule.place_due() == 0
    assert ServerBackups.objects.filter(next_proof__gt=timezone.now()).exists(), "and it never is late"
    with pytest.raises(Refused, match="no recovery tests of servers in this region yet"):
        schedule.prove_now(alice, server=berry)
    with pytest.raises(Refused, match="back from their backups yet"):
        restore(alice, berry)
    shown = client_for(alice).get(reverse("server_restore", args=[berry.organisation.slug, berry.pk]))
    assert "be brought back from their backups yet" in shown.content.decode()
    assert not Proof.objects.exists()
