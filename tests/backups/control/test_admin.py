"""Staff's pages: where backups lie, how long they are kept, what there is and what is wrong. No secret comes out."""

from __future__ import annotations

from pathlib import Path

import pytest
from django.apps import apps
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from accounts.models import User
from audit.models import AuditEvent
from backups.models import Alarm, Copy, Policy, Proof, RegionStores, RestorePoint, ServerBackups, Shelf, Store
from provisioning import fleet
from tenants.models import Server
from tests.cast import client_for, make_user

pytestmark = pytest.mark.django_db


@pytest.fixture
def staff(db: None) -> Client:
    """A browser of the staff."""
    return client_for(make_user("staff@example.org", staff=True))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    (tmp_path / "disk").mkdir()
    return Store.objects.create(code="disk", name="Disk", kind=Store.Kind.FOLDER, folder=str(tmp_path / "disk"))


def page(model: str, pk: object = None) -> str:
    name = f"admin:backups_{model}_"
    return reverse(f"{name}change", args=[pk]) if pk else reverse(f"{name}changelist")


def bucket(**changes: str) -> dict[str, str]:
    said = {
        "code": "eu",
        "name": "Bucket",
        "kind": "s3",
        "endpoint": "https://s3.test",
        "bucket": "b",
        "location": "eu-1",
    }
    keys = {"access_key": "hearth", "secret_key": "may-remove", "agent_access_key": "agent"}
    return said | keys | {"agent_secret_key": "may-write", "folder": ""} | changes


def test_every_list_and_row_can_be_looked_at(server: Server, store: Store, staff: Client) -> None:
    now = timezone.now()
    RegionStores.objects.create(region=fleet.seed_region(), first=store)
    Policy.objects.create()
    RestorePoint.objects.create(server=server, identity="20261120t000000z-00000000", at=now, kind="daily", line="x")
    Proof.objects.create(server=server, kind="listing", begun=now, result="passed", evidence={"objects": 3})
    Alarm.objects.create(server=server, cause="behind", text="What changed is not stored.")
    Shelf.objects.create(server=server, store=store, next_turn=now)
    for model in ("store", "regionstores", "policy", "restorepoint", "proof", "alarm", "shelf"):
        assert staff.get(page(model)).status_code == 200, model
        row = apps.get_model("backups", model).objects.first()
        assert row is not None
        assert staff.get(page(model, row.pk)).status_code == 200, model


def test_a_bucket_is_made_and_its_secrets_never_come_back(staff: Client) -> None:
    answer = staff.post(reverse("admin:backups_store_add"), bucket())
    assert answer.status_code == 302, answer.context["adminform"].form.errors
    row = Store.objects.get()
    assert (row.secret_key, row.agent_secret_key) == ("may-remove", "may-write")
    staff.post(page("store", row.pk), bucket(name="Another", secret_key="", agent_secret_key=""))
    row.refresh_from_db()
    assert (row.name, row.secret_key) == ("Another", "may-remove")
    shown = staff.get(page("store", row.pk)).content.decode() + str(list(AuditEvent.objects.values()))
    assert "may-remove" not in shown
    assert "may-write" not in shown
    assert AuditEvent.objects.filter(verb="backups.store").count() == 2


@pytest.mark.parametrize("changes", [{"endpoint": ""}, {"bucket": ""}, {"kind": "folder", "folder": "relative"}])
def test_a_store_without_a_place_is_refused(staff: Client, changes: dict[str, str]) -> None:
    assert staff.post(reverse("admin:backups_store_add"), bucket(**changes)).status_code == 200
    assert not Store.objects.exists()


def test_a_store_that_is_used_stays_where_it_is(store: Store, staff: Client, tmp_path: Path) -> None:
    RegionStores.objects.create(region=fleet.seed_region(), first=store)
    said = {"code": "disk", "name": "Disk", "kind": "folder", "folder": str(tmp_path / "other")}
    answer = staff.post(page("store", store.pk), said)
    assert "its place stays as it is" in answer.content.decode()
    store.refresh_from_db()
    assert store.folder == str(tmp_path / "disk")


def test_the_connection_is_tested(store: Store, staff: Client) -> None:
    said = {"action": "check_store", "_selected_action": [str(store.pk)]}
    staff.post(page("store"), said)
    store.refresh_from_db()
    assert store.fault == ""
    assert {each["what"] for each in store.findings} >= {"versions", "write-once names"}
    Store.objects.update(folder="/nowhere/at/all")
    answer = staff.post(page("store"), said, follow=True)
    assert "is not there" in answer.content.decode()
    store.refresh_from_db()
    assert store.fault


def test_a_region_gets_two_stores(store: Store, staff: Client, tmp_path: Path) -> None:
    region = fleet.seed_region()
    far = Store.objects.create(code="far", name="Far", kind=Store.Kind.FOLDER, folder=str(tmp_path))
    add = reverse("admin:backups_regionstores_add")
    assert staff.post(add, {"region": region.pk, "first": store.pk, "second": store.pk}).status_code == 200
    assert not RegionStores.objects.exists()
    assert staff.post(add, {"region": region.pk, "first": store.pk, "second": far.pk}).status_code == 302
    assert RegionStores.objects.get().second == far
    assert AuditEvent.objects.filter(verb="backups.stores").count() == 1


def test_a_policy_is_changed_by_its_verb(staff: Client, server: Server) -> None:
    said = {"plan": "", "server": str(server.pk), "every_hours": 12, "hour": "", "window_days": 7, "prove_days": 7}
    add = reverse("admin:backups_policy_add")
    short = staff.post(add, said | {"retention_days": 29, "final_days": 30})
    assert short.status_code == 200
    assert not Policy.objects.exists()
    answer = staff.post(add, said | {"retention_days": 35, "final_days": 30})
    assert answer.status_code == 302, answer.context["adminform"].form.errors
    row = Policy.objects.get()
    assert (row.server, row.retention_days) == (server, 35)
    changed = {"every_hours": 24, "hour": 3, "window_days": 36, "prove_days": 7, "retention_days": 35, "final_days": 30}
    assert "can&#x27;t be longer" in staff.post(page("policy", row.pk), changed).content.decode()
    assert staff.post(page("policy", row.pk), changed | {"window_days": 10}).status_code == 302
    row.refresh_from_db()
    assert (row.window_days, row.hour, row.server) == (10, 3, server)
    assert AuditEvent.objects.filter(verb="backups.policy").count() == 2


def test_nobody_else_finds_them(store: Store, alice: User) -> None:
    for model in ("store", "proof", "alarm"):
        assert client_for(alice).get(page(model)).status_code in {302, 403, 404}


def test_a_second_store_that_can_not_be_used_is_refused(store: Store, staff: Client, tmp_path: Path) -> None:
    region = fleet.seed_region()
    far = Store.objects.create(code="far", name="Far", kind=Store.Kind.FOLDER, folder=str(tmp_path / "away"))
    said = {"region": region.pk, "first": store.pk, "second": far.pk, "copy_megabytes": "20"}
    add = reverse("admin:backups_regionstores_add")
    assert "is not there" in staff.post(add, said).content.decode()
    assert not RegionStores.objects.exists()
    (tmp_path / "away").mkdir()
    answer = staff.post(add, said, follow=True)
    assert "lie on this machine" in answer.content.decode()
    row = RegionStores.objects.get()
    assert (row.second, row.copy_megabytes) == (far, 20)


def test_staff_have_a_lost_store_filled_again(store: Store, staff: Client, server: Server, tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    far = Store.objects.create(code="far", name="Far", kind=Store.Kind.FOLDER, folder=str(tmp_path / "far"))
    row = RegionStores.objects.create(region=fleet.seed_region(), first=store, second=far)
    ServerBackups.objects.create(server=server, reported=timezone.now())
    copy = Copy.objects.create(server=server, source=store, target=far, fault_code="StoreAway", fault="It is away.")
    repair = {"action": "repair_first", "_selected_action": [str(row.pk)]}
    assert "Test the connection" in staff.post(page("regionstores"), repair, follow=True).content.decode()
    assert not Copy.objects.filter(repair=True).exists()
    staff.post(page("store"), {"action": "check_store", "_selected_action": [str(store.pk), str(far.pk)]})
    assert "brought back from Far. Servers: 1" in staff.post(page("regionstores"), repair, follow=True).content.decode()
    assert Copy.objects.get(repair=True).target == store
    anew = repair | {"action": "copy_anew"}
    assert "copied to Far" in staff.post(page("regionstores"), anew, follow=True).content.decode()
    staff.post(page("copy"), {"action": "turn_now", "_selected_action": [str(copy.pk)]})
    assert Copy.objects.filter(next_turn__isnull=False).count() == 2
    shown = staff.get(page("copy")).content.decode()
    assert "StoreAway" in shown
    assert staff.get(page("copy", copy.pk)).status_code == 200
    verbs = AuditEvent.objects.values_list("verb", flat=True)
    assert {"backups.repair", "backups.copy-anew", "backups.copy-now"} <= set(verbs)
