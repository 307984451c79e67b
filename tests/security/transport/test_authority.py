"""The internal authority: what it signs, for whom, and how it follows itself."""

from __future__ import annotations

import uuid

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from security.transport import authority
from security.transport.identities import Identity, from_der
from tests.security.transport.requests import csr

AGENT = Identity("agent", str(uuid.UUID(int=7)))


@pytest.mark.django_db
def test_it_works() -> None:
    issued = authority.issue(csr(), AGENT)
    certificate = x509.load_pem_x509_certificate(issued.chain.encode())
    root = x509.load_pem_x509_certificate(issued.trust.encode())
    certificate.verify_directly_issued_by(root)
    assert from_der(certificate.public_bytes(Encoding.DER)) == AGENT
