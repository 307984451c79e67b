"""A certificate authority of one test, for what the agent must take or refuse without any Hearth."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from security.transport.identities import Identity

WEEK = 7 * 86_400.0


class Authority:
    """One self-signed authority; `issue` signs whatever it is asked."""

    def __init__(self, name: str = "Test") -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        now = datetime.now(UTC)
        self.certificate = (
            x509.CertificateBuilder(self.name, self.name, self.key.public_key(), x509.random_serial_number())
            .not_valid_before(now - timedelta(days=400))
            .not_valid_after(now + timedelta(days=400))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .sign(self.key, hashes.SHA256())
        )
        self.trust = self.certificate.public_bytes(Encoding.PEM).decode()

    def issue(self, request: bytes, identity: Identity, *, age: float = 0.0, life: float = WEEK) -> str:
        """Return a certificate that began `age` seconds ago and lives `life` seconds in all."""
        asked = x509.load_pem_x509_csr(request)
        begins = datetime.now(UTC) - timedelta(seconds=age)
        uri = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(identity.uri)])
        leaf = (
            x509.CertificateBuilder(self.name, x509.Name([]), asked.public_key(), x509.random_serial_number())
            .not_valid_before(begins)
            .not_valid_after(begins + timedelta(seconds=life))
            .add_extension(uri, critical=True)
            .sign(self.key, hashes.SHA256())
        )
        return leaf.public_bytes(Encoding.PEM).decode()
