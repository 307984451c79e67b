"""Staff make, change and check a Kubernetes region; what is secret goes in and never comes out."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from django.test import Client
from django.urls import reverse

from accounts.models import User
from audit.models import AuditEvent
from provisioning.models import Cluster, Region
from tenants.models import Server
from tests.cast import make_user
from tests.cluster.api import Api
from tests.cluster.furnish import NAME
from tests.provisioning.kubernetes.conftest import inline

if TYPE_CHECKING:
    from tests.cluster.launch import Cluster as TestCluster

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.xdist_group("cluster")]
LIST, ADD = "admin:provisioning_cluster_changelist", "admin:provisioning_cluster_add"


@pytest.fixture
def staff(db: None, client_for: Callable[[User], Client]) -> Client:
    """A browser of the staff."""
    return client_for(make_user("staff@example.org", staff=True))


@pytest.fixture
def form(cluster: TestCluster) -> dict[str, Any]:
    """What staff type."""
    return {
        "code": "north",
        "name": "North",
        "base_domain": "north.example",
        "kubeconfig": inline(cluster.kubeconfig),
        "route": "http://synapse-main.{namespace}.svc:8008",
        "synapse_image": "images.example/synapse:v{version}",
        "postgres_image": "images.example/postgresql:17.6",
        "redis_image": "",
        "storage_class": NAME,
        "ingress_class": NAME,
        "issuer": NAME,
        "s3_endpoint": "https://s3.example",
        "s3_bucket": "hearth-media",
        "s3_access_key": "AKEXAMPLE",
        "s3_secret_key": "an-s3-secret",
        "database_host": "db.example",
        "database_user": "keeper",
        "database_password": "a-database-secret",
        "network_range": "10.64.0.0/12",
        "overlay": "{}",
    }


def secret_words(kubeconfig: str) -> list[str]:
    user = yaml.safe_load(kubeconfig)["users"][0]["user"]
    return ["an-s3-secret", "a-database-secret", *[str(value)[:60] for value in user.values()]]


def change_page(cluster: Cluster) -> str:
    return reverse("admin:provisioning_cluster_change", args=[cluster.pk])


def test_it_works(staff: Client, form: dict[str, Any]) -> None:
    assert staff.get(reverse(ADD)).status_code == 200
    answer = staff.post(reverse(ADD), form)
    assert answer.status_code == 302, answer.context["adminform"].form.errors
    made = Cluster.objects.get()
    assert (made.region.code, made.region.open, made.region.provider) == ("north", False, "kubernetes")
    assert made.kubeconfig == form["kubeconfig"].strip()
    assert (made.database_port, made.network_prefix) == (5432, 24)
    words = secret_words(form["kubeconfig"])
    for path in (change_page(made), reverse(LIST), reverse("admin:audit_auditevent_changelist")):
        page = staff.get(path, follow=True).content.decode()
        assert not [word for word in words if word in page]
    events = str(list(AuditEvent.objects.values_list("verb", "before", "after")))
    assert "region.create" in events
    assert not [word for word in words if word in events]
    stored = str(list(Cluster.objects.values_list("kubeconfig", "s3_secret_key", "database_password")))
    assert not [word for word in words if word in stored]


def test_what_is_left_empty_stays(staff: Client, form: dict[str, Any]) -> None:
    staff.post(reverse(ADD), form)
    made = Cluster.objects.get()
    later = {**form, "kubeconfig": "", "s3_secret_key": "", "database_password": "", "issuer": ""}
    answer = staff.post(change_page(made), later)
    assert answer.status_code == 302, answer.context["adminform"].form.errors
    changed = Cluster.objects.get()
    assert (changed.kubeconfig, changed.s3_secret_key) == (form["kubeconfig"].strip(), "an-s3-secret")
    assert changed.database_password == "a-database-secret"
    assert (changed.issuer, changed.revision) == ("", 2)
    staff.post(change_page(made), {**later, "in_cluster": "on"})
    assert Cluster.objects.get().kubeconfig is None
    event = AuditEvent.objects.filter(verb="region.change").latest("id")
    assert event.after["kubeconfig"] == "removed"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"kubeconfig": "users: ["}, "is no YAML"),
        ({"kubeconfig": "users: []"}, "no complete current context"),
        ({"kubeconfig": ""}, "Give a kubeconfig, or choose"),
        ({"in_cluster": "on"}, "not both"),
        ({"code": "local"}, "There is a region “local” already"),
        ({"ingress_class": "", "gateway": ""}, "Nobody could reach servers"),
        ({"route": "http://synapse"}, "must have {namespace} in it"),
        ({"synapse_image": "images.example/synapse"}, "must have {version} in it"),
        ({"s3_bucket": ""}, "S3 needs an endpoint and a bucket"),
        ({"database_user": ""}, "PostgreSQL needs a user"),
        ({"database_authority": "no certificate"}, "no certificate in PEM"),
        ({"database_ranges": "10.9.0.0/24, x"}, "“x” is no range"),
        ({"database_port": "70000"}, "less than or equal to 65535"),
        ({"network_range": "8.8.0.0/16"}, "must be private"),
        ({"network_range": "somewhere"}, "no range of addresses"),
        ({"network_prefix": "29"}, "less than or equal to 27"),
        ({"prometheus": "prometheus:9090"}, "http or https address"),
        ({"overlay": "[1]"}, "must be a JSON object"),
    ],
)
def test_what_can_not_work_is_refused(staff: Client, form: dict[str, Any], change: dict[str, str], said: str) -> None:
    Region.objects.create(code="local", name="L", provider="local", base_domain="l.example")
    answer = staff.post(reverse(ADD), form | change)
    assert answer.status_code == 200
    assert said in str(answer.context["adminform"].form.errors.as_data())
    assert not Cluster.objects.exists()
    assert Region.objects.count() == 1


def test_storage_stays_while_servers_are_there(
    staff: Client, form: dict[str, Any], make_server: Callable[..., Server]
) -> None:
    staff.post(reverse(ADD), form)
    made = Cluster.objects.get()
    make_server(region="north")
    for moved in ({"s3_bucket": "another"}, {"database_host": "other.example"}, {"network_prefix": "25"}):
        answer = staff.post(change_page(made), form | moved)
        assert "their data lies there" in str(answer.context["adminform"].form.errors)
    assert Cluster.objects.get().s3_bucket == "hearth-media"


def test_a_check_says_what_is_missing(
    staff: Client, form: dict[str, Any], cluster: TestCluster, api: Api, namespace: str
) -> None:
    staff.post(reverse(ADD), {**form, "storage_class": "gone", "snapshot_class": "gone"})
    made = Cluster.objects.get()
    action = {"action": "check_region", "_selected_action": [str(made.pk)]}
    page = staff.post(reverse(LIST), action, follow=True).content.decode()
    assert "The cluster has no “gone”." in page
    assert "Nobody has said that Secrets are encrypted in etcd" in page
    found = {each["what"]: each["state"] for each in Cluster.objects.get().findings}
    assert found["MatrixServer"] == found["Rights"] == found["Version"] == found["Issuer"] == "good"
    assert found["Storage class"] == found["Snapshot class"] == found["Encryption of etcd"] == "missing"
    assert found["Least privilege"] == "warn", "an administrator is more than Hearth should be"
    assert "The cluster has no “gone”." in staff.get(change_page(made)).content.decode()

    config = yaml.safe_load(inline(cluster.kubeconfig))
    config["users"][0]["user"] = {"token": api.token(namespace, "default")}
    staff.post(change_page(made), {**form, "kubeconfig": yaml.safe_dump(config), "etcd_encrypted": "on"})
    page = staff.post(reverse(LIST), action, follow=True).content.decode()
    assert "Hearth may not: get namespaces, create namespaces" in page
    found = {each["what"]: each["state"] for each in Cluster.objects.get().findings}
    assert (found["Rights"], found["Encryption of etcd"]) == ("missing", "good")


def test_members_have_no_such_page(alice: User, client_for: Callable[[User], Client]) -> None:
    assert client_for(alice).get(reverse(LIST)).status_code in {302, 403, 404}
