"""What cert-manager is asked for on Kubernetes."""

from __future__ import annotations

import json

import pytest

from security.transport import certmanager
from security.transport.identities import Identity
from tests.security.transport.pki import AGENT, LISTENER


def test_a_certificate_of_a_caller() -> None:
    assert certmanager.certificate(AGENT, "matrix-1", "agent", labels={"app": "agent"}) == {
        "apiVersion": "cert-manager.io/v1",
        "kind": "Certificate",
        "metadata": {"name": "agent", "namespace": "matrix-1", "labels": {"app": "agent"}},
        "spec": {
            "secretName": "agent",
            "subject": {"organizations": ["Hearth"]},
            "uris": [AGENT.uri],
            "duration": "168h0m0s",
            "renewBefore": "56h0m0s",
            "usages": ["digital signature", "client auth"],
            "privateKey": {"algorithm": "ECDSA", "size": 256, "encoding": "PKCS8", "rotationPolicy": "Always"},
            "issuerRef": {"group": "cert-manager.io", "kind": "Issuer", "name": "hearth-internal"},
        },
    }


def test_the_listeners_certificate() -> None:
    made = certmanager.certificate(
        LISTENER, "hearth", "internal", hosts=["hearth-internal.hearth.svc", "10.0.0.7", "::1"]
    )
    assert made["spec"]["dnsNames"] == ["hearth-internal.hearth.svc"]
    assert made["spec"]["ipAddresses"] == ["10.0.0.7", "::1"]
    assert made["spec"]["usages"] == ["digital signature", "server auth"]
    assert "labels" not in made["metadata"]
    with pytest.raises(ValueError, match="Only the listener"):
        certmanager.certificate(Identity("operator", "eu"), "hearth", "operator", hosts=["x"])


def test_the_authority_keeps_its_key_and_outlives_what_it_signs() -> None:
    first, authority, issuer = certmanager.authority("hearth")
    assert first["spec"] == {"selfSigned": {}}
    assert authority["spec"]["issuerRef"]["name"] == first["metadata"]["name"]
    assert authority["spec"]["privateKey"]["rotationPolicy"] == "Never"
    assert authority["spec"]["isCA"] is True
    assert issuer["spec"] == {"ca": {"secretName": authority["spec"]["secretName"]}}
    assert issuer["metadata"]["name"] == certmanager.certificate(AGENT, "x", "y")["spec"]["issuerRef"]["name"]
    assert certmanager.AUTHORITY_RENEW_HOURS > certmanager.LIFE_HOURS > certmanager.RENEW_HOURS


def test_builders_give_plain_data_and_never_share_it() -> None:
    one, two = certmanager.authority("hearth"), certmanager.authority("hearth")
    assert json.loads(json.dumps(one)) == two
    one[1]["spec"]["privateKey"]["size"] = 1
    assert certmanager.authority("hearth") == two
