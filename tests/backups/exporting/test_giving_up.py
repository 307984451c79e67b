"""When an export ends early by itself. The provider fails on command."""

from __future__ import annotations

import pytest
from django.utils import timezone

from accounts.models import User
from backups.exporting import verbs
from backups.restoring import steps
from provisioning import services
from provisioning.providers.base import Recovering
from security.models import UnwrapGrant
from tenants.models import Server
from tests.backups.restoring.restorable import log, look
from tests.provisioning.fakes import ScriptedProvider

pytestmark = pytest.mark.django_db(transaction=True)


def test_what_fails_in_its_last_phase_is_not_made_again_for_ever(
    berry: Server, provider: ScriptedProvider, alice: User
) -> None:
    export = verbs.export(alice, server=berry, what="everything")
    operation, instance = look(export.restore.operation), str(export.restore.instance)
    for _ in range(steps.MOST_FAILURES):
        for phase, done in (("files", 2000), ("archive", 10)):
            provider.recovered[instance] = Recovering("running", phase, done, 4000)
            look(operation)
        assert operation.state == "queued", operation.error
        provider.recovered[instance] = Recovering("failed", code="DiskFull", text="The disk is full.", retry=True)
        look(operation, 2)  # the second time it is asked for again
    assert (operation.state, operation.error_code) == ("failed", "DiskFull"), log(operation)


@pytest.mark.parametrize("change", ["suspended", "upgraded"])
def test_a_change_that_can_not_wait_comes_first(
    berry: Server, provider: ScriptedProvider, alice: User, change: str
) -> None:
    export = verbs.export(alice, server=berry, what="everything")
    operation = look(export.restore.operation)
    provider.recovered[str(export.restore.instance)] = Recovering("running", "files", 10, 4000)
    Server.objects.filter(pk=berry.pk).update(users=7, generation=berry.generation + 1)
    assert look(operation).state == "queued", "this one can wait"
    wanted = {"desired": "suspended"} if change == "suspended" else {"version": "9.9.9"}
    Server.objects.filter(pk=berry.pk).update(**wanted, generation=berry.generation + 2)
    look(operation)
    assert (operation.state, operation.error_code) == ("failed", "ServerChanged")
    assert "cancel_recovery" in provider.calls
    assert UnwrapGrant.objects.filter(revoked_at=None).count() == 0
    following = services.reconcile(berry.pk) or berry.operations.exclude(pk=operation.pk).latest("created")
    assert following.kind == ("suspend" if change == "suspended" else "upgrade")
    export.refresh_from_db()
    assert export.keep_until is not None
    assert export.keep_until > timezone.now()
