"""A certificate authority for one test cluster: short EC keys, because RSA would cost a second of each start."""

from __future__ import annotations

import base64
import datetime
import ipaddress
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

DAY = datetime.timedelta(days=1)
_USAGES = {"server auth": ExtendedKeyUsageOID.SERVER_AUTH, "client auth": ExtendedKeyUsageOID.CLIENT_AUTH}


@dataclass(frozen=True)
class Pair:
    """A certificate and its private key, both PEM."""

    certificate: bytes
    key: bytes


class Authority:
    """Signs certificates that are valid from yesterday for `days` days."""

    def __init__(self, name: str, *, days: float = 30) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._days = days
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = self._builder(subject, subject, self._key, days)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        self._certificate = builder.sign(self._key, hashes.SHA256())

    @classmethod
    def read(cls, pair: Pair) -> Self:
        """Return the authority of this certificate and key."""
        found = cls("replaced below")
        key = serialization.load_pem_private_key(pair.key, None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise TypeError("an authority here has an EC key")
        found._key, found._certificate = key, x509.load_pem_x509_certificate(pair.certificate)
        return found

    @property
    def pair(self) -> Pair:
        """The authority's own certificate and key."""
        return Pair(self.certificate, private_pem(self._key))

    @property
    def certificate(self) -> bytes:
        """The authority's own certificate, PEM."""
        return self._certificate.public_bytes(serialization.Encoding.PEM)

    def issue(
        self, name: str, *, groups: tuple[str, ...] = (), hosts: tuple[str, ...] = (), days: float | None = None
    ) -> Pair:
        """Return a new key with a certificate for a client (`groups`) or a server (`hosts`: names and addresses)."""
        key = ec.generate_private_key(ec.SECP256R1())
        organisations = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, group) for group in groups]
        # A common name holds 64 characters at most; names of hosts stand in the extension anyway.
        subject = x509.Name([*organisations, x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])
        builder = self._builder(subject, self._certificate.subject, key, self._days if days is None else days)
        usages = [ExtendedKeyUsageOID.SERVER_AUTH if hosts else ExtendedKeyUsageOID.CLIENT_AUTH]
        builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        if hosts:
            builder = builder.add_extension(
                x509.SubjectAlternativeName([_host(host) for host in hosts]), critical=False
            )
        signed = builder.sign(self._key, hashes.SHA256())
        return Pair(signed.public_bytes(serialization.Encoding.PEM), private_pem(key))

    def sign(self, spec: Mapping[str, Any], *, days: float) -> Pair:
        """Return a new key with the certificate that the spec of a cert-manager `Certificate` asks for."""
        key = ec.generate_private_key(ec.SECP256R1())
        organisations = spec.get("subject", {}).get("organizations", [])
        names = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, each) for each in organisations]
        if common := spec.get("commonName"):
            names.append(x509.NameAttribute(NameOID.COMMON_NAME, common))
        hosts = [*filter(None, [common]), *spec.get("dnsNames", []), *spec.get("ipAddresses", [])]
        others: list[x509.GeneralName] = [_host(each) for each in dict.fromkeys(hosts)]
        others += [x509.UniformResourceIdentifier(each) for each in spec.get("uris", [])]
        wanted = spec.get("usages", ["digital signature", "key encipherment", "server auth"])
        usages = [usage for name, usage in _USAGES.items() if name in wanted]
        builder = self._builder(x509.Name(names), self._certificate.subject, key, days)
        builder = builder.add_extension(x509.SubjectAlternativeName(others), critical=not names)
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        if usages:
            builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        signed = builder.sign(self._key, hashes.SHA256())
        return Pair(signed.public_bytes(serialization.Encoding.PEM), private_pem(key))

    def _builder(
        self, subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, days: float
    ) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - DAY)
            .not_valid_after(now + days * DAY)
        )


def signing_pair() -> Pair:
    """Return a public and a private key for service account tokens; `certificate` is the public key."""
    key = ec.generate_private_key(ec.SECP256R1())
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    return Pair(public, private_pem(key))


def signed_token(key: bytes, claims: Mapping[str, Any]) -> str:
    """Return a JSON Web Token, signed ES256 (RFC 7518, section 3.4) with an EC key given as PEM."""
    private = serialization.load_pem_private_key(key, None)
    if not isinstance(private, ec.EllipticCurvePrivateKey):
        raise TypeError("ES256 needs an EC key")
    head = {"alg": "ES256", "typ": "JWT"}
    text = b".".join(_base64(json.dumps(part).encode()) for part in (head, claims))
    numbers = decode_dss_signature(private.sign(text, ec.ECDSA(hashes.SHA256())))
    signature = b"".join(number.to_bytes(32, "big") for number in numbers)
    return b".".join([text, _base64(signature)]).decode()


def _base64(content: bytes) -> bytes:
    return base64.urlsafe_b64encode(content).rstrip(b"=")


def private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return the key as PKCS#8 PEM without a password."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)
