"""Staff read the fleet, and retry or cancel operations by the same verbs that owners have."""

from __future__ import annotations

import html
import re
from collections.abc import Callable

import pytest
from django.apps import apps
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from accounts.models import User
from audit.models import AuditEvent
from provisioning import engine, services
from provisioning.models import Operation, Region, Sample
from provisioning.providers.base import ProviderError
from tenants.models import Domain, Server
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
    Sample.objects.create(server=server, at=operation.created, memory_bytes=2_500_000)
    row = apps.get_model("provisioning", model).objects.first()
    assert row is not None
    assert staff.get(reverse(f"admin:provisioning_{model}_change", args=[row.pk])).status_code == 200
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


def test_a_region_is_closed_by_its_verb(server: Server, provider: ScriptedProvider, staff: Client) -> None:
    region = Region.objects.get()
    path = reverse("admin:provisioning_region_change", args=[region.pk])
    for _ in range(2):
        assert staff.post(path, {"name": "Cellar", "base_domain": "evil.example", "code": "x"}).status_code == 302
    region.refresh_from_db()
    assert (region.name, region.open, region.code, region.base_domain) == ("Cellar", False, "local", "hearth.localhost")
    event = AuditEvent.objects.get(verb="region.change")
    assert event.before == {"name": "This machine", "open": True}
    assert event.after == {"name": "Cellar", "open": False}


def test_a_proof_is_taken_back_by_its_verb(server: Server, staff: Client) -> None:
    domain = Domain.objects.create(
        organisation=server.organisation, name="example.org", token="not-for-staff", proved=timezone.now()
    )
    page = staff.get(reverse("admin:tenants_domain_change", args=[domain.pk]))
    assert "not-for-staff" not in page.content.decode()
    staff.post(reverse("admin:tenants_domain_changelist"), {"action": "revoke", "_selected_action": [str(domain.pk)]})
    domain.refresh_from_db()
    assert domain.proved is None
    assert AuditEvent.objects.filter(verb="domain.revoke").exists()


def test_what_needs_somebody_comes_first(server: Server, provider: ScriptedProvider, staff: Client) -> None:
    def fail() -> None:
        raise ProviderError("The disk is full. Free some space.", code="DiskFull", retry=False)

    provider.faults["configure"] = [fail]
    operation = services.reconcile(server.pk)
    assert operation is not None
    engine.run(operation.pk)
    page = staff.get(reverse("admin:index")).content.decode()
    tiles = re.findall(r'data-tone="(\w+)"><strong>(\d+)</strong><span>([^<]+)</span>', page)
    assert tiles[:2] == [("bad", "1", "Servers not well"), ("bad", "1", "Operations failed in a day")]
    assert ("good", "0", "Mails given up") in tiles
    for path in re.findall(r'<li><a href="([^"]+)" data-tone', page):
        assert staff.get(html.unescape(path)).status_code == 200
    servers = staff.get(reverse("admin:tenants_server_changelist")).content.decode()
    assert "berry.hearth.localhost" in servers
    assert re.search(r">\s*Failed\s*<", servers)


def test_the_log_has_times_to_the_second_and_no_numbers_of_rows(
    server: Server, provider: ScriptedProvider, staff: Client
) -> None:
    operation = services.reconcile(server.pk)
    assert operation is not None
    engine.run(operation.pk)
    page = staff.get(reverse("admin:provisioning_operation_change", args=[operation.pk])).content.decode()
    assert re.search(r"\d{4}-\d\d-\d\d\xa0\d\d:\d\d:\d\d", page)
    assert "object (" not in page
