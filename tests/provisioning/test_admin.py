"""Staff read the fleet, and retry or cancel operations by the same verbs that owners have."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from django.test import Client
from django.urls import reverse

from accounts.models import User
from audit.models import AuditEvent
from provisioning import engine, services
from provisioning.models import Operation
from tenants.models import Server
from tests.cast import make_user
from tests.provisioning.fakes import ScriptedProvider

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def staff(db: None, client_for: Callable[[User], Client]) -> Client:
    """A browser of the staff."""
    return client_for(make_user("staff@example.org", staff=True))


@pytest.mark.parametrize("model", ["region", "operation", "serverstatus", "sample"])
def test_it_works(server: Server, provider: ScriptedProvider, staff: Client, model: str) -> None:
    operation = services.reconcile(server.pk)
    assert operation is not None
    engine.run(operation.pk)
    assert staff.get(reverse(f"admin:provisioning_{model}_changelist")).status_code == 200
    page = staff.get(reverse("admin:provisioning_operation_change", args=[operation.pk]))
    assert "start is done." in page.content.decode()


def test_cancel_and_retry(server: Server, provider: ScriptedProvider, staff: Client) -> None:
    operation = services.reconcile(server.pk)
    assert operation is not None
    for action, state in (("cancel", "cancelled"), ("retry", "queued")):
        staff.post(
            reverse("admin:provisioning_operation_changelist"),
            {"action": action, "_selected_action": [str(operation.pk)]},
        )
        operation.refresh_from_db()
        assert operation.state == state
    assert list(AuditEvent.objects.filter(object_type="operation").order_by("id").values_list("verb", flat=True)) == [
        "operation.cancel",
        "operation.retry",
    ]


def test_nothing_is_edited_by_hand(server: Server, provider: ScriptedProvider, staff: Client) -> None:
    operation = services.reconcile(server.pk)
    assert operation is not None
    path = reverse("admin:provisioning_operation_change", args=[operation.pk])
    assert staff.post(path, {"state": "succeeded"}).status_code == 403
    assert staff.post(reverse("admin:provisioning_operation_delete", args=[operation.pk])).status_code == 403
    assert Operation.objects.get(pk=operation.pk).state == "queued"
