"""A real router sends each path where the chart says, in all three ways in which the chart says it."""

from __future__ import annotations

import contextlib
import ssl
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import yaml

from provisioning.chart.schema import FOLDER
from tests.chart import values
from tests.chart.render import render
from tests.chart.routers import GATEWAY, Pods, Router, authority_of, gateway, ingress_class
from tests.chart.test_synapse import samples
from tests.cluster.given import Given
from tests.cluster.launch import Cluster

pytestmark = pytest.mark.xdist_group("cluster")
HOST, OWN = "matrix.alice.example", "alice.example"
ISSUER = {"name": "test", "kind": "ClusterIssuer", "group": "cert-manager.io"}
PATTERNS = {"traefik.ingress.kubernetes.io/router.pathmatcher": "PathRegexp"}
TLS13 = {"traefik.ingress.kubernetes.io/router.tls.options": "tls13@file"}
"""How a region with Traefik asks for TLS 1.3: the option lies in Traefik's own file."""
WAYS = ("plain", "patterns", "gateway")
OLD = ssl.TLSVersion.TLSv1_2


@dataclass
class Place:
    """One server on the cluster, routed in one way."""

    way: str
    namespace: str
    pods: Pods
    authority: bytes
    cluster: Cluster | Given

    @contextlib.contextmanager
    def router(self, **options: object) -> Iterator[Router]:
        """Run a router before these pods, which serves both hosts. A Gateway's port is moved to it."""
        kind = "gateway" if self.way == "gateway" else "ingress"
        named = {} if self.way == "gateway" else {"class": self.namespace}
        with Router(self.cluster.kubeconfig, self.pods, self.authority, kind, **named, **options) as router:
            if self.way == "gateway":
                self.cluster.api.apply(*gateway(self.namespace, self.namespace, router.port))
            router.wait(HOST, "/_matrix/client/versions", "synapse-generic")
            router.wait(OWN, "/.well-known/matrix/server", "synapse-front")
            yield router


@dataclass
class Routed:
    place: Place
    router: Router


def spec(way: str, namespace: str) -> dict[str, Any]:
    """Return a large server's spec, routed in this way."""
    plain = {"class": namespace, "annotations": TLS13, "regex": None}
    regex = {"class": namespace, "regex": {"annotations": PATTERNS}}
    parents = {"parentRefs": [{"name": "public", "namespace": namespace, "sectionName": "https"}]}
    ways: dict[str, dict[str, Any]] = {
        "plain": {"ingress": plain, "gateway": None},
        "patterns": {"ingress": regex, "gateway": None},
        "gateway": {"ingress": None, "gateway": parents},
    }
    changes: dict[str, Any] = {"routing": {**ways[way], "certificate": {"issuerRef": ISSUER}}, "priorityClass": None}
    if way == "plain":
        changes["workers"] = {"streamWriters": {"typing": False}}
    return values.workers(**changes)


@pytest.fixture(scope="module", params=WAYS)
def routed(request: pytest.FixtureRequest, cluster: Cluster | Given) -> Iterator[Routed]:
    way, api = str(request.param), cluster.api
    namespace = f"test-router-{way}-{uuid.uuid4().hex[:8]}"
    api.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})
    api.apply({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "synapse", "namespace": namespace}})
    api.apply(ingress_class(namespace))
    pods = Pods(api, namespace, render(spec(way, namespace), namespace=namespace, uid=""))
    try:
        place = Place(way, namespace, pods, authority_of(api, namespace), cluster)
        with place.router() as router:
            yield Routed(place, router)
    finally:
        pods.close()
        api.delete("networking.k8s.io/v1", "IngressClass", namespace)
        if way == "gateway":
            api.delete(GATEWAY, "GatewayClass", namespace)
        api.delete("v1", "Namespace", namespace)


def test_each_path_arrives_at_its_process(routed: Routed) -> None:
    seen = set()
    for group, entries in yaml.safe_load((FOLDER / "files" / "routes.yaml").read_text()).items():
        for path in (path for entry in entries for path in samples(entry)):
            answer = routed.router.ask(HOST, path)
            # An Ingress without patterns sends the rest to the main process, which serves them all.
            allowed = {f"synapse-{group}"} | ({"synapse-main"} if routed.place.way == "plain" else set())
            assert answer.service in allowed, (path, answer)
            assert answer.path == path
            seen.add(answer.service)
    wanted = {"generic", "media", "to-device", "presence", "push-rules"}
    wanted |= set() if routed.place.way == "plain" else {"typing", "account-data", "receipts"}
    assert seen >= {f"synapse-{group}" for group in wanted}


@pytest.mark.parametrize(
    "path",
    [
        "/_matrix/client/v3/rooms/%21r%3Aalice.example/messages?dir=b",
        "/_matrix/client/v3/rooms/%21r%3Aalice.example/report/a",
        "/_matrix/client/v3/login/sso/redirect",
        "/_matrix/client/v3/account/password",
        "/_synapse/client/oidc/callback",
        "/_matrix/key/v2/server",
        "/.well-known/matrix/client",
    ],
)
def test_all_else_goes_to_the_main_process(routed: Routed, path: str) -> None:
    assert routed.router.ask(HOST, path).service == "synapse-main"


@pytest.mark.parametrize("path", ["/.well-known/matrix/server", "/.well-known/matrix/client"])
def test_the_servers_own_name_delegates(routed: Routed, path: str) -> None:
    assert routed.router.ask(OWN, path).service == "synapse-front"


@pytest.mark.parametrize("path", ["/", "/_matrix/client/versions", "/_synapse/admin/v1/register"])
def test_the_servers_own_name_serves_nothing_else(routed: Routed, path: str) -> None:
    assert routed.router.ask(OWN, path).status == 404


@pytest.mark.parametrize(
    "path",
    [
        "/_synapse/admin/v1/register",
        "/_synapse/admin",
        "/_synapse/metrics",
        "/_synapse/replication/x",
        "/",
        "/health",
        "//_synapse/admin/v1/register",
        "/_Synapse/admin",
        "/%5fsynapse/admin/v1/users",
    ],
)
def test_what_is_inside_has_no_route(routed: Routed, path: str) -> None:
    assert routed.router.ask(HOST, path).status == 404


@pytest.mark.parametrize(
    "path", ["/_matrix/../_synapse/admin/v1/register", "/_matrix/%2e%2e/_synapse/admin/v1/register"]
)
def test_no_detour_becomes_a_way_to_the_administration(routed: Routed, path: str) -> None:
    answer = routed.router.ask(HOST, path)
    assert not answer.path.startswith("/_synapse/admin"), answer


def test_a_host_that_is_nobodys_is_not_served(routed: Routed) -> None:
    with pytest.raises(ssl.SSLCertVerificationError):
        routed.router.ask("matrix.mallory.example", "/_matrix/client/versions")


def test_a_region_can_hold_every_caller_to_tls_1_3(routed: Routed) -> None:
    assert routed.router.ask(HOST, "/_matrix/client/versions").status == 200
    if routed.place.way == "plain":
        # Here the annotation of the Ingress says so, and it holds for the server's own name too.
        for host in (HOST, OWN):
            with pytest.raises(ssl.SSLError):
                routed.router.ask(host, "/_matrix/client/versions", maximum_version=OLD)
        return
    # Neither an Ingress nor a Gateway has a field for it, and Traefik's own floor is lower: that is why it is probed.
    assert routed.router.ask(HOST, "/_matrix/client/versions", maximum_version=OLD).status == 200


def test_a_large_upload_arrives_whole(routed: Routed) -> None:
    answer = routed.router.ask(HOST, "/_matrix/media/v3/upload", body=b"x" * 5_000_000)
    assert (answer.service, answer.length) == ("synapse-media", 5_000_000)


# The last two move a Gateway's port to a router of their own.
def test_a_region_can_say_it_for_a_whole_router(routed: Routed) -> None:
    with routed.place.router(lowest="VersionTLS13") as strict, pytest.raises(ssl.SSLError):
        strict.ask(HOST, "/_matrix/client/versions", maximum_version=OLD)


def test_a_routers_own_limit_of_bodies_says_413(routed: Routed) -> None:
    with routed.place.router(bodies=1_000_000) as small:
        assert small.ask(HOST, "/_matrix/media/v3/upload", body=b"x" * 999_000).length == 999_000
        assert small.ask(HOST, "/_matrix/media/v3/upload", body=b"x" * 1_001_000).status == 413
