"""What Hearth writes for a server, as plain data; the real API server takes each of them."""

from __future__ import annotations

import base64
import uuid
from dataclasses import replace
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from provisioning.providers.base import ProviderError, ServerSpec
from provisioning.providers.kubernetes import objects
from provisioning.providers.kubernetes.kubeconfig import KubeconfigRefused, read
from provisioning.providers.kubernetes.place import Bucket, Place
from provisioning.providers.local.keys import new_secrets, verify_key
from tenants.errors import Refused
from tenants.names import server_label
from tenants.releases import newest
from tests.cluster.api import Api

ORGANISATION = str(uuid.UUID(int=7))
SPEC = ServerSpec(
    server_id=str(uuid.UUID(int=1)),
    server_name="berry.region.example",
    version=newest().version,
    vcpu=2,
    memory_mb=4096,
    disk_gb=20,
    object_gb=100,
    users=50,
    organisation_id=ORGANISATION,
    secrets=new_secrets(),
)
PLACE = Place(
    base_domain="region.example",
    synapse_image="images.example/synapse:v{version}",
    postgres_image="images.example/postgresql:17.6",
    redis_image="images.example/redis:7.4",
    storage_class="test",
    ingress_class="test",
    issuer="test",
)
BUCKET = Bucket("https://s3.example", "hearth-media", "eu-1", "AKEXAMPLE", "s3-secret-word")


def spec_of(place: Place = PLACE, before: Any = None, **changes: Any) -> dict[str, Any]:
    return dict(objects.matrix_server(replace(SPEC, **changes), place, before)["spec"])


def decoded(secret: objects.Object) -> dict[str, str]:
    return {key: base64.b64decode(value).decode() for key, value in secret["data"].items()}


def test_a_region_says_who_may_reach_its_servers() -> None:
    place = replace(
        PLACE, ingress_namespace="ingress-nginx", monitoring=True, monitoring_namespace="observability",
        hearth_namespace="control", dns_addresses=("169.254.20.10/32",), api_server_ranges=("10.0.0.1/32",),
    )  # fmt: skip
    found = spec_of(place)
    assert found["network"] == {
        "ingressNamespace": "ingress-nginx", "monitoringNamespace": "observability", "hearthNamespace": "control",
        "dnsAddresses": ["169.254.20.10/32"], "apiServer": ["10.0.0.1/32"],
    }  # fmt: skip
    assert found["monitoring"] == {"enabled": True}
    assert "monitoring" not in spec_of()
    assert not spec_of()["network"]


def test_the_one_secret_holds_everything_and_nothing_else_does() -> None:
    place = replace(PLACE, bucket=BUCKET)
    content = decoded(objects.secret(SPEC, place))
    assert content["signing.key"].strip() == SPEC.secrets["signing_key"]
    assert content["redis.conf"] == f"requirepass {content['redis']}\n"
    assert (content["username"], content["password"]) == ("synapse", SPEC.secrets["database"])
    assert "aws_secret_access_key = s3-secret-word" in content["s3-credentials"]
    others = f"{objects.namespace(SPEC)}{objects.matrix_server(SPEC, place)}"
    for word in [*SPEC.secrets.values(), "s3-secret-word", "AKEXAMPLE"]:
        assert word not in others
        assert word not in repr(SPEC)
        assert word not in repr(place) or word == "AKEXAMPLE"


def test_the_revision_follows_the_secret_alone() -> None:
    first = objects.revision(SPEC, PLACE)
    assert first == objects.revision(replace(SPEC, users=7, version="1.149.1"), replace(PLACE, issuer="other"))
    assert first != objects.revision(replace(SPEC, secrets={**SPEC.secrets, "jwt": "another"}), PLACE)
    assert first != objects.revision(SPEC, replace(PLACE, bucket=BUCKET))


def test_the_key_is_named_and_always_the_same() -> None:
    expected = verify_key(SPEC.secrets["signing_key"])[0]
    assert {spec_of(users=number)["secret"]["signingKeyId"] for number in (1, 2)} == {expected}


def test_a_name_of_their_own_gets_a_host_of_ours() -> None:
    assert spec_of()["publicHost"] == "berry.region.example"
    assert spec_of(server_name="example.org")["publicHost"] == f"m-{uuid.UUID(int=1).hex}.region.example"
    assert spec_of(server_name="notregion.example")["publicHost"].startswith("m-")


@given(st.uuids())
def test_nobody_can_take_the_host_of_another_server_for_a_name(server_id: uuid.UUID) -> None:
    host = spec_of(server_id=str(server_id), server_name="example.org")["publicHost"]
    with pytest.raises(Refused, match="kept free"):
        server_label(host.removesuffix(".region.example"))


def test_workers_come_with_size_and_share_what_is_sold() -> None:
    assert "workers" not in spec_of()
    large = spec_of(vcpu=8, memory_mb=16384, federation=True)
    assert large["workers"] == {"generic": {"min": 1, "max": 7}, "federationSenders": 1}
    assert large["redis"]["own"]["storage"] == {"size": "1Gi", "class": "test"}
    assert "workers" not in spec_of(replace(PLACE, redis_image=""), vcpu=8, memory_mb=16384)


def test_the_plan_says_how_many_copies_and_workers_there_are() -> None:
    assert spec_of()["database"]["cluster"] == {"instances": 1, "storage": {"size": "10Gi", "class": "test"}}
    kept = spec_of(database_instances=3, database_synchronous=True, database_replicas=True)["database"]["cluster"]
    assert (kept["instances"], kept["synchronous"], kept["readReplicas"]) == (3, True, True)
    large: dict[str, Any] = {"vcpu": 8, "memory_mb": 16384, "federation": True}
    assert spec_of(**large, workers=3)["workers"] == {"generic": {"min": 1, "max": 3}, "federationSenders": 1}
    assert spec_of(**large, workers=40)["workers"]["generic"]["max"] == 7, "never more than its size has room for"
    none = spec_of(**large, workers=0)
    assert "workers" not in none
    assert "redis" not in none


def test_the_disk_is_shared_between_what_lies_on_it() -> None:
    assert spec_of()["database"]["cluster"]["storage"]["size"] == "10Gi"
    assert spec_of()["media"]["volume"]["size"] == "10Gi"
    with_bucket = spec_of(replace(PLACE, bucket=BUCKET))
    assert with_bucket["database"]["cluster"]["storage"]["size"] == "20Gi"
    prefix = f"servers/{SPEC.server_id}/"
    assert with_bucket["media"] == {
        "s3": {"endpoint": "https://s3.example", "bucket": "hearth-media", "prefix": prefix, "region": "eu-1"}
    }


def test_a_volume_never_shrinks() -> None:
    """Not even where a Redis comes later, which takes a gigabyte of the same disk."""
    large: dict[str, Any] = {"vcpu": 8, "memory_mb": 16384, "disk_gb": 40}
    place = replace(PLACE, bucket=BUCKET)
    before = spec_of(replace(place, redis_image=""), **large)
    assert spec_of(place, **large)["database"]["cluster"]["storage"]["size"] == "39Gi"
    after = spec_of(place, before=before, **large)
    assert after["database"]["cluster"]["storage"] == before["database"]["cluster"]["storage"]
    assert spec_of(place, before=before, **large | {"disk_gb": 60})["database"]["cluster"]["storage"]["size"] == "59Gi"


def test_a_region_lays_its_own_over_it() -> None:
    managed = {"host": "db.example", "name": "synapse_{server}"}
    overlay = {"database": {"cluster": None, "managed": managed}, "images": {"postgres": None}}
    found = spec_of(replace(PLACE, overlay=overlay))
    assert found["database"] == {"managed": {"host": "db.example", "name": f"synapse_{SPEC.server_id}"}}
    assert "postgres" not in found["images"]


def test_an_unknown_version_is_refused_in_words() -> None:
    with pytest.raises(ProviderError, match=r"does not offer Synapse 0\.1\.0.*Nothing was changed"):
        spec_of(version="0.1.0")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "7",
        "[]",
        "{}",
        "[" * 60_000,
        "current-context: 2024-13-45",
        "current-context: a\ncontexts: 7",
        "current-context: a\ncontexts: [{name: a, context: 7}]",
        "current-context: a\ncontexts: [{name: a, context: [[1, 2, 3]]}]",
        "\x00",
        "&a [*a, *a]",
        "x" * 70_000,
    ],
)
def test_what_is_no_kubeconfig_is_refused_and_not_quoted(text: str) -> None:
    with pytest.raises(KubeconfigRefused, match="Nothing was changed"):
        read(text)


@pytest.mark.parametrize("server", ["https://", "https://[", "http://a.example", "file:///etc/passwd", "", None, 7])
def test_an_address_that_is_none_is_refused(server: object) -> None:
    cluster = {"server": server, "certificate-authority-data": "eA=="}
    config = {
        "current-context": "a",
        "contexts": [{"name": "a", "context": {"cluster": "a", "user": "a"}}],
        "clusters": [{"name": "a", "cluster": cluster}],
        "users": [{"name": "a", "user": {"token": "t"}}],
    }
    with pytest.raises(KubeconfigRefused, match="no https address"):
        read(yaml.safe_dump(config))


@pytest.mark.xdist_group("cluster")
@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({}, PLACE),
        ({"suspended": True, "suspend_message": "Back on Monday."}, PLACE),
        ({"vcpu": 4, "memory_mb": 8192, "federation": True}, PLACE),
        ({"vcpu": 64, "memory_mb": 8192, "federation": True}, replace(PLACE, bucket=BUCKET)),
        ({"database_instances": 3, "database_synchronous": True, "database_replicas": True}, PLACE),
        ({"server_name": "example.org"}, replace(PLACE, issuer="", ingress_class="", gateway="ingress/public")),
        ({}, replace(PLACE, storage_class="", snapshot_class="fast", priority_class="hearth-server")),
    ],
)
def test_the_api_server_takes_it(api: Api, namespace: str, changes: dict[str, Any], place: Place) -> None:
    spec = replace(SPEC, **changes)
    for found in (objects.secret(spec, place), objects.matrix_server(spec, place)):
        found["metadata"]["namespace"] = namespace
        api.apply(found, dry_run=True)
    api.apply(objects.namespace(spec), dry_run=True)
