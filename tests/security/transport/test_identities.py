"""Who somebody is, on the wire."""

from __future__ import annotations

import uuid

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from security.transport.errors import IdentityError
from security.transport.identities import Identity, from_der
from tests.security.transport.pki import AGENT, SERVER, Ca


@pytest.mark.parametrize("identity", [AGENT, Identity("operator", "eu-1"), Identity("metrics", "prometheus")])
def test_an_identity_is_one_uri_and_back(identity: Identity) -> None:
    assert Identity.parse(identity.uri) == identity
    assert identity.uri == f"spiffe://hearth.internal/{identity.kind}/{identity.name}"


@pytest.mark.parametrize(
    "uri",
    [
        "",
        f"spiffe://hearth.internal/agent/{SERVER}/",
        f"spiffe://hearth.internal/agent/{SERVER}\n",
        f"spiffe://hearth.internal/agent/{SERVER}?x",
        f"spiffe://hearth.internal/agent/{SERVER.upper()[:-1]}A",
        f"spiffe://hearth.internal/agent/{uuid.UUID(SERVER).hex}",
        f"spiffe://hearth.internal:443/agent/{SERVER}",
        f"spiffe://other@hearth.internal/agent/{SERVER}",
        f"spiffe://hearth.internal.example/agent/{SERVER}",
        f"https://hearth.internal/agent/{SERVER}",
        f"spiffe://hearthxinternal/agent/{SERVER}",
        "spiffe://hearth.internal/agent/not-a-server",
        "spiffe://hearth.internal/root/me",
        "spiffe://hearth.internal/operator/-eu",
        "spiffe://hearth.internal/operator/%65u",
        "spiffe://hearth.internal/operator/" + "x" * 64,
        "spiffe://hearth.internal/operator",
    ],
)
def test_everything_else_is_nobody(uri: str) -> None:
    with pytest.raises(IdentityError):
        Identity.parse(uri)


def der(*uris: str, hosts: tuple[str, ...] = ()) -> bytes:
    chain, _ = Ca().certify(*uris, hosts=hosts)
    return x509.load_pem_x509_certificate(chain.encode()).public_bytes(Encoding.DER)


def test_a_certificate_names_exactly_one() -> None:
    assert from_der(der(AGENT.uri)) == AGENT
    assert from_der(der("spiffe://hearth.internal/hearth/listener", hosts=("localhost",))).kind == "hearth"
    for uris in ((), (AGENT.uri, AGENT.uri), (AGENT.uri, "https://example.org/"), ("https://example.org/",)):
        with pytest.raises(IdentityError):
            from_der(der(*uris))


def test_what_is_no_certificate_names_nobody() -> None:
    for junk in (b"", b"junk", der(AGENT.uri)[:-1]):
        with pytest.raises(IdentityError):
            from_der(junk)
