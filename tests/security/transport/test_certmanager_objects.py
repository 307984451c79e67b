"""What Hearth asks cert-manager for is taken by its real definitions, and what is signed for it opens the listener."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path

import pytest

from security.transport import certmanager
from security.transport.client import InternalClient
from security.transport.errors import NotTrusted
from security.transport.files import Files
from security.transport.identities import Identity
from security.transport.tls import Material
from tests.cluster.api import Api
from tests.security.transport.pki import AGENT, LISTENER, store
from tests.security.transport.running import Given, running, says

pytestmark = pytest.mark.xdist_group("cluster")
API = certmanager.API


def signed(api: Api, namespace: str, identity: Identity, name: str, hosts: tuple[str, ...] = ()) -> Material:
    """Ask for a certificate and return what its Secret holds."""
    api.apply(certmanager.certificate(identity, namespace, name, hosts=hosts))

    def ready() -> bool:
        found = api.get(API, "Certificate", name, namespace) or {}
        conditions = found.get("status", {}).get("conditions", [])
        return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)

    api.wait(f"certificate {name}", ready)
    data = (api.get("v1", "Secret", name, namespace) or {})["data"]
    chain, key, trust = (base64.b64decode(data[part]).decode() for part in ("tls.crt", "tls.key", "ca.crt"))
    return Material.read(chain, key, trust)


def client(files: Files, port: int) -> InternalClient:
    return InternalClient(f"localhost:{port}", files.certificate, files.key, files.trust, timeout=10)


def test_applying_it_again_changes_nothing(api: Api, namespace: str) -> None:
    """Also not a default that the API server adds, or a duration that it writes in another way."""
    resources = certmanager.authority(namespace, {"app": "hearth"})
    resources.append(certmanager.certificate(LISTENER, namespace, "listener", hosts=["localhost", "10.0.0.7", "::1"]))
    resources.append(certmanager.certificate(AGENT, namespace, "agent"))
    first = api.apply(*resources)
    for wanted, found in zip(resources, first, strict=True):
        assert found["spec"] == wanted["spec"]
    api.wait("signed", lambda: api.get("v1", "Secret", "agent", namespace))
    for one, two in zip(first, api.apply(*resources), strict=True):
        assert two["metadata"]["generation"] == one["metadata"]["generation"]


def test_what_is_signed_opens_the_listener(api: Api, namespace: str, tmp_path: Path) -> None:
    api.apply(*certmanager.authority(namespace))
    listener = signed(api, namespace, LISTENER, "listener", ("localhost", "127.0.0.1"))
    agent = signed(api, namespace, AGENT, "agent")
    assert agent.trust == listener.trust
    with running(Given(listener), says) as hearth, client(store(tmp_path / "agent", agent), hearth.port) as calling:
        assert calling.get("/").json()["caller"] == str(AGENT)


def test_another_namespaces_authority_opens_nothing(
    api: Api, new_namespace: Callable[..., str], tmp_path: Path
) -> None:
    places = [new_namespace(), new_namespace()]
    for place in places:
        api.apply(*certmanager.authority(place))
    listener = signed(api, places[0], LISTENER, "listener", ("localhost",))
    stranger = signed(api, places[1], AGENT, "agent")
    with (
        running(Given(listener), says) as hearth,
        client(store(tmp_path / "stranger", stranger), hearth.port) as calling,
    ):
        for _ in range(3):
            with pytest.raises(NotTrusted):
                calling.get("/")
