"""The lowest TLS version of a region is seen from outside: at a real Traefik, with and without a minimum."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from provisioning import clusters
from provisioning.models import Cluster
from provisioning.providers.kubernetes import tls
from tests.chart.routers import Router, ingress_class
from tests.cluster.api import Api

if TYPE_CHECKING:
    from tests.chart.routers import Pods
    from tests.cluster.launch import Cluster as TestCluster

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.xdist_group("cluster")]


@pytest.fixture
def router(cluster: TestCluster, api: Api, namespace: str, tmp_path: Path) -> Callable[..., Any]:
    """Return a function that runs Traefik with one route; gives its address."""
    api.apply(ingress_class(namespace))
    rule = {"path": "/", "pathType": "Prefix", "backend": {"service": {"name": "x", "port": {"number": 80}}}}
    spec = {"ingressClassName": namespace, "rules": [{"host": "x.region.example", "http": {"paths": [rule]}}]}
    meta = {"name": "x", "namespace": namespace}
    api.apply({"apiVersion": "networking.k8s.io/v1", "kind": "Ingress", "metadata": meta, "spec": spec})

    @contextlib.contextmanager
    def run(**options: object) -> Iterator[str]:
        pods = cast("Pods", SimpleNamespace(folder=tmp_path))
        with Router(cluster.kubeconfig, pods, b"", "ingress", **{"class": namespace}, **options) as running:
            address = f"127.0.0.1:{running.port}"
            api.wait("router", lambda: _taken(address), seconds=60)
            yield address

    return run


def _taken(address: str) -> list[str]:
    try:
        return tls.versions(address, "x.region.example")
    except OSError:
        return []


@pytest.mark.parametrize(
    ("lowest", "taken"),
    [
        ("", ["1.2", "1.3"]),
        ("VersionTLS10", ["1.0", "1.1", "1.2", "1.3"]),
        ("VersionTLS11", ["1.1", "1.2", "1.3"]),
        ("VersionTLS13", ["1.3"]),
    ],
)
def test_what_a_router_takes(router: Callable[..., Any], lowest: str, taken: list[str]) -> None:
    with router(**({"lowest": lowest} if lowest else {})) as address:
        assert tls.versions(address, "x.region.example") == taken


def _found(cluster: Cluster) -> dict[str, str]:
    found = clusters.check(actor="staff", cluster=cluster)
    return next(each for each in found if each["what"] == "Lowest TLS version")


@pytest.mark.parametrize(
    ("lowest", "minimum", "state"),
    [("VersionTLS11", "1.2", "missing"), ("VersionTLS12", "1.2", "good"), ("VersionTLS12", "1.3", "missing"),
     ("VersionTLS13", "1.3", "good")],
)  # fmt: skip
def test_the_check_of_a_region_says_it(
    router: Callable[..., Any], make_region: Callable[..., Cluster], lowest: str, minimum: str, state: str
) -> None:
    with router(lowest=lowest) as address:
        found = _found(make_region(ingress_address=address, tls_minimum=minimum))
    assert found["state"] == state, found
    assert f"TLS {lowest[-2]}.{lowest[-1]}" in found["text"]


def test_where_nothing_answers_it_says_so(make_region: Callable[..., Cluster]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    found = _found(make_region(ingress_address=f"127.0.0.1:{port}"))
    assert (found["state"], "does not answer" in found["text"]) == ("warn", True)


@pytest.mark.parametrize(
    "answer", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x16\x03", b"\x15\x03\x01\x00\x02\x02\x46"]
)
def test_what_is_no_tls_takes_no_version(answer: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    with connection:
                        connection.recv(4096)
                        connection.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        assert tls.versions(f"127.0.0.1:{server.getsockname()[1]}", "x.example") == []
        server.shutdown(socket.SHUT_RDWR)


def test_addresses() -> None:
    found = [tls.parted(each) for each in ("a.example", "a.example:8443", "[::1]", "[::1]:8443")]
    assert found == [("a.example", 443), ("a.example", 8443), ("::1", 443), ("::1", 8443)]
