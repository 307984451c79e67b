"""cert-manager's objects for internal certificates on Kubernetes: identities in, dictionaries out. No Django, no I/O.

The authority signs itself and keeps its private key over renewals (`rotationPolicy: Never`): each Secret carries the
authority of the moment it was signed, and with another key the two halves of a fleet would not know one another for as
long as a certificate lives. The keys of certificates change at each renewal. API: cert-manager.io/v1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from ipaddress import ip_address
from typing import Any

from security.transport.identities import Identity

API = "cert-manager.io/v1"
AUTHORITY = "hearth-internal"
"""The name of the authority's Issuer, Certificate and Secret."""
LIFE_HOURS, RENEW_HOURS = 168, 56
"""Hours that a certificate lives, and how many are left when it is renewed: a third, as with Hearth's own authority."""
AUTHORITY_HOURS, AUTHORITY_RENEW_HOURS = 10 * 365 * 24, 365 * 24

Resource = dict[str, Any]


def authority(namespace: str, labels: Mapping[str, str] | None = None) -> list[Resource]:
    """Return what makes the authority: a self-signed Issuer, its Certificate, and the Issuer that signs for others."""
    first = f"{AUTHORITY}-root"
    spec = {
        "isCA": True,
        "commonName": "Hearth internal authority",
        "subject": {"organizations": ["Hearth"]},
        "secretName": AUTHORITY,
        "duration": _hours(AUTHORITY_HOURS),
        "renewBefore": _hours(AUTHORITY_RENEW_HOURS),
        "usages": ["cert sign", "crl sign"],
        "privateKey": _key("Never"),
        "issuerRef": _issuer(first),
    }
    return [
        _resource("Issuer", first, namespace, labels, {"selfSigned": {}}),
        _resource("Certificate", AUTHORITY, namespace, labels, spec),
        _resource("Issuer", AUTHORITY, namespace, labels, {"ca": {"secretName": AUTHORITY}}),
    ]


def certificate(
    identity: Identity,
    namespace: str,
    name: str,
    *,
    hosts: Sequence[str] = (),
    labels: Mapping[str, str] | None = None,
) -> Resource:
    """Return the Certificate of an identity; its Secret has the same name, with `tls.crt`, `tls.key` and `ca.crt`.

    `hosts` are the names and addresses of the listener. Raises `ValueError` when another identity has some.
    """
    listens = identity.kind == "hearth"
    if hosts and not listens:
        raise ValueError("Only the listener is reached by a host name.")
    spec: Resource = {
        "secretName": name,
        "subject": {"organizations": ["Hearth"]},
        "uris": [identity.uri],
        "duration": _hours(LIFE_HOURS),
        "renewBefore": _hours(RENEW_HOURS),
        "usages": ["digital signature", "server auth" if listens else "client auth"],
        "privateKey": _key("Always"),
        "issuerRef": _issuer(AUTHORITY),
    }
    addresses = [host for host in hosts if _is_address(host)]
    names = [host for host in hosts if not _is_address(host)]
    spec |= {"ipAddresses": addresses} if addresses else {}
    spec |= {"dnsNames": names} if names else {}
    return _resource("Certificate", name, namespace, labels, spec)


def _resource(kind: str, name: str, namespace: str, labels: Mapping[str, str] | None, spec: Resource) -> Resource:
    about: Resource = {"name": name, "namespace": namespace}
    if labels:
        about["labels"] = dict(labels)
    return {"apiVersion": API, "kind": kind, "metadata": about, "spec": spec}


def _key(rotation: str) -> Resource:
    return {"algorithm": "ECDSA", "size": 256, "encoding": "PKCS8", "rotationPolicy": rotation}


def _issuer(name: str) -> Resource:
    return {"group": "cert-manager.io", "kind": "Issuer", "name": name}


def _hours(count: int) -> str:
    return f"{count}h0m0s"  # as Kubernetes writes a duration, so that an unchanged object stays unchanged


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True
