"""Where the listener's own certificate comes from, and how it stays fresh: never down, old ones kept when all fails."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from django.views.decorators.debug import sensitive_variables

from security.transport import authority
from security.transport.errors import CertificateError
from security.transport.identities import Identity
from security.transport.requests import certificate_request, private_pem
from security.transport.tls import LiveContext, Material, server_context

logger = logging.getLogger(__name__)
LISTENER = Identity("hearth", "listener")
LONGEST_WAIT, SHORTEST_WAIT = 60.0, 0.5
"""Seconds between two looks."""


class Source(Protocol):
    """Gives certificates."""

    def look(self, present: Material | None) -> Material | None:
        """Return what should be used instead of `present`; None when that is still right. May raise anything."""


class Own:
    """Hearth's own authority signs; the private key is made here and stays in this process.

    `release` is called after each look: one a minute must not hold a connection of PostgreSQL's for good.
    """

    def __init__(self, hosts: Sequence[str], *, release: Callable[[], None] = lambda: None) -> None:
        self._hosts, self._release = hosts, release

    @sensitive_variables()
    def look(self, present: Material | None) -> Material | None:
        """A new certificate when it is time; the present one with new trust when an authority came or went."""
        try:
            trust = authority.trust()
            if present is None or present.is_due() or not _signed_by(present.chain, trust):
                key = ec.generate_private_key(ec.SECP256R1())
                issued = authority.issue(certificate_request(key), LISTENER, hosts=self._hosts)
                return Material.read(issued.chain, private_pem(key), issued.trust)
            return None if trust == present.trust else Material.read(present.chain, present.key, trust)
        finally:
            self._release()


class Mounted:
    """Files that somebody else renews, such as cert-manager by way of a mounted Secret."""

    def __init__(self, certificate: Path, key: Path, trust: Path) -> None:
        self._files = (certificate, key, trust)
        self._seen: tuple[tuple[int, int, int], ...] = ()

    @sensitive_variables()
    def look(self, present: Material | None) -> Material | None:
        """What the files hold, if they changed. Raises `CertificateError` while they don't fit together."""
        try:
            signature = tuple((s.st_ino, s.st_mtime_ns, s.st_size) for s in (path.stat() for path in self._files))
            if signature == self._seen:
                return None
            material = Material.read(*(path.read_text(encoding="utf-8") for path in self._files))
        except (OSError, UnicodeDecodeError) as error:
            raise CertificateError(f"A file of the listener's certificate can't be read: {error}.") from None
        if material.identity.kind != "hearth":
            raise CertificateError(f"{self._files[0]} is the certificate of {material.identity}, not the listener's.")
        self._seen = signature
        return material if present is None or material != present else None


class Keeper:
    """Holds the listener's context and keeps it fresh. Each fault is logged once, until it has passed."""

    def __init__(self, source: Source, *, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._source, self._clock = source, clock
        self._fault = ""
        self._late = False
        self.material: Material | None = None
        self.context: LiveContext | None = None

    def look(self) -> bool:
        """Look once; return whether there is a certificate to serve with. Blocks, and never raises."""
        try:
            if (fresh := self._source.look(self.material)) is not None:
                self._use(fresh)
            if self._fault:
                logger.warning("The internal listener's certificate is in order again.")
            self._fault = ""
        except Exception as error:  # whatever it is: the listener stays up with what it has
            self._say(error)
        self._warn()
        return self.context is not None

    @property
    def wait(self) -> float:
        """Seconds until the next look."""
        if self.material is None:
            return SHORTEST_WAIT
        return max(SHORTEST_WAIT, min(LONGEST_WAIT, self.material.life.total_seconds() / 20))

    def _use(self, fresh: Material) -> None:
        if self.context is None:
            self.context = server_context(fresh)
        else:
            self.context.use(fresh)
            logger.info("The internal listener uses a new certificate, until %s.", fresh.not_after.isoformat())
        self.material, self._late = fresh, False

    def _say(self, error: Exception) -> None:
        fault = f"{type(error).__name__}: {error}"
        if fault != self._fault:
            kept = "The one in use stays in use." if self.context else "It does not listen until there is one."
            logger.error(
                "The internal listener's certificate could not be renewed: %s %s", " ".join(fault.split()), kept
            )
        self._fault = fault

    def _warn(self) -> None:
        """Say it once when a certificate should have been renewed long ago."""
        if self.material is None or self._late:
            return
        left = self.material.not_after - self._clock()
        if left < self.material.life / 6:
            self._late = True
            logger.error("The internal listener's certificate ends in %.1f hours.", left.total_seconds() / 3600)


def _signed_by(chain: str, trust: str) -> bool:
    """Tell whether one of the authorities signed the chain's top. Not so after a database was brought back."""
    top = x509.load_pem_x509_certificates(chain.encode())[-1]
    for one in x509.load_pem_x509_certificates(trust.encode()):
        try:
            top.verify_directly_issued_by(one)
        except (ValueError, TypeError, InvalidSignature):
            continue
        return True
    return False
