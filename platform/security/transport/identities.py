"""Who takes part in internal conversations, as a URI in the certificate (SPIFFE's form). Imports no Django.

`spiffe://hearth.internal/<kind>/<name>`: `agent` (name: the server's UUID), `operator` (the region's name), `metrics`
(whoever scrapes) and `hearth` (the internal listener). Source: SPIFFE-ID and X509-SVID, spiffe.io.
"""

from __future__ import annotations

import re
import uuid
from dataclasses import dataclass
from typing import Self

from cryptography import x509

from security.transport.errors import IdentityError

TRUST_DOMAIN = "hearth.internal"
KINDS = ("agent", "operator", "metrics", "hearth")
CALLER = "hearth.caller"
"""The key under which the listener, and nobody else, puts the caller's identity into an ASGI scope."""
URI = re.compile(rf"spiffe://{re.escape(TRUST_DOMAIN)}/([a-z]+)/([a-z0-9-]+)")
NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")


@dataclass(frozen=True, slots=True)
class Identity:
    """One participant. Raises `IdentityError` for a kind that is unknown or a name in another form than its own."""

    kind: str
    name: str

    def __post_init__(self) -> None:
        if self.kind not in KINDS or not NAME.fullmatch(self.name):
            raise IdentityError(f"{self.kind!r} {self.name!r} is no identity. The kinds are {', '.join(KINDS)}.")
        if self.kind == "agent" and not _canonical(self.name):
            raise IdentityError(f"An agent is named by its server's UUID in small letters, not by {self.name!r}.")

    @classmethod
    def parse(cls, uri: str) -> Self:
        """Return the identity that a URI names, or raise `IdentityError`. Each identity has exactly one URI."""
        if (found := URI.fullmatch(uri)) is None:
            raise IdentityError(f"{uri[:200]!r} is no identity of {TRUST_DOMAIN}.")
        return cls(found[1], found[2])

    @property
    def uri(self) -> str:
        return f"spiffe://{TRUST_DOMAIN}/{self.kind}/{self.name}"

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"


def from_der(der: bytes) -> Identity:
    """Return the identity of a certificate (DER), or raise `IdentityError`: it has one URI, and that is one of ours."""
    try:
        certificate = x509.load_der_x509_certificate(der)
    except ValueError:
        raise IdentityError("A certificate can't be read.") from None
    return of_certificate(certificate)


def of_certificate(certificate: x509.Certificate) -> Identity:
    """Return the identity of a certificate, or raise `IdentityError`."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, x509.DuplicateExtension, x509.UnsupportedGeneralNameType, ValueError):
        raise IdentityError("A certificate names nobody: it has no URI.") from None
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    if len(uris) != 1:
        raise IdentityError(f"A certificate names {len(uris)} URIs; an identity is exactly one.")
    return Identity.parse(uris[0])


def _canonical(name: str) -> bool:
    try:
        return str(uuid.UUID(name)) == name
    except ValueError:
        return False
