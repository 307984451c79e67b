"""Private keys and the requests for their certificates (PKCS #10, RFC 2986). Imports no Django."""

from __future__ import annotations

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat


def certificate_request(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return a request (PEM) for this key. It names nobody: whom it is for is what Hearth decides."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)


def private_pem(key: ec.EllipticCurvePrivateKey) -> str:
    """Return the private key as PEM (PKCS #8, not encrypted)."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
