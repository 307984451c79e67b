"""Authorities and certificates of all kinds, good and bad; Hearth's own makes only good ones."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from security.transport.files import Files
from security.transport.identities import Identity
from security.transport.requests import private_pem
from security.transport.tls import Material

HOUR = timedelta(hours=1)
SERVER = "00000000-0000-4000-8000-000000000007"
AGENT, LISTENER = Identity("agent", SERVER), Identity("hearth", "listener")
HOSTS = ("localhost", "127.0.0.1")


def csr(key: Any = None, *, names: Sequence[x509.GeneralName] = (), digest: Any = None) -> bytes:
    """Return a request for a key (a new one), asking for names that nobody looks at."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    signed = builder.sign(key or ec.generate_private_key(ec.SECP256R1()), digest or hashes.SHA256())
    return signed.public_bytes(Encoding.PEM)


class Ca:
    """An authority of a test."""

    def __init__(self, name: str = "test") -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        now = datetime.now(UTC)
        self.certificate = (
            self._builder(self.name, self.key, now - 24 * HOUR, now + 24 * HOUR)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .sign(self.key, hashes.SHA256())
        )
        self.trust = self.certificate.public_bytes(Encoding.PEM).decode()

    def certify(
        self,
        *uris: str,
        hosts: Sequence[str] = (),
        since: timedelta = -HOUR,
        until: timedelta = HOUR,
        usage: x509.ObjectIdentifier | None = None,
    ) -> tuple[str, str]:
        """Return a chain and its key (PEM), with any number of URIs, valid between two times from now."""
        key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(uri) for uri in uris]
        names += [x509.IPAddress(ip_address(h)) if h[0].isdigit() else x509.DNSName(h) for h in hosts]
        builder = self._builder(x509.Name([]), key, now + since, now + until)
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=True)
        if usage is not None:
            builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        return builder.sign(self.key, hashes.SHA256()).public_bytes(Encoding.PEM).decode(), private_pem(key)

    def material(self, identity: Identity = AGENT, *, trust: str = "", **options: Any) -> Material:
        """Return what an identity needs, trusting this authority alone unless told otherwise."""
        if identity.kind == "hearth":
            options = {"hosts": HOSTS, "usage": ExtendedKeyUsageOID.SERVER_AUTH} | options
        chain, key = self.certify(identity.uri, **options)
        return Material.read(chain, key, trust or self.trust)

    def _builder(
        self, subject: x509.Name, key: ec.EllipticCurvePrivateKey, since: datetime, until: datetime
    ) -> x509.CertificateBuilder:
        serial = x509.random_serial_number()
        builder = x509.CertificateBuilder(self.name, subject, key.public_key(), serial)
        return builder.not_valid_before(since).not_valid_after(until)


def store(folder: Path, material: Material) -> Files:
    """Write what somebody needs into a folder."""
    folder.mkdir(exist_ok=True)
    files = Files(folder / "certificate.pem", folder / "key.pem", folder / "trust.pem")
    files.install(material.chain, material.key, material.trust)
    return files
