"""TLS 1.3 with certificates on both sides, exchanged while it runs. Imports no Django.

Python's `ssl` takes a private key from a file only. It gets one that exists in memory alone (`memfd_create`), so the
key of the embedded listener is never on a disk.
"""

from __future__ import annotations

import logging
import os
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Self

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from security.transport.errors import CertificateError, IdentityError
from security.transport.identities import Identity, from_der, of_certificate

logger = logging.getLogger(__name__)
QUIET = 60.0
"""Seconds in which refusals of one reason are one line."""


@dataclass(frozen=True)
class Material:
    """A certificate chain, its private key and whom to trust (PEM), which fit together."""

    chain: str
    key: str = field(repr=False)
    trust: str
    identity: Identity
    not_before: datetime
    not_after: datetime

    @classmethod
    def read(cls, chain: str, key: str, trust: str) -> Self:
        """Raises `CertificateError` for what can't be read, names nobody, or does not belong together."""
        try:
            leaf = x509.load_pem_x509_certificates(chain.encode())[0]
            private = serialization.load_pem_private_key(key.encode(), None)
            x509.load_pem_x509_certificates(trust.encode())
            identity = of_certificate(leaf)
        except IdentityError as error:
            raise CertificateError(f"{error} What was in use before stays in use.") from None
        except (ValueError, TypeError):
            raise CertificateError("A certificate, its key or its trust can't be read.") from None
        form = (serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
        if private.public_key().public_bytes(*form) != leaf.public_key().public_bytes(*form):
            raise CertificateError("A certificate and its private key don't belong together.")
        return cls(chain, key, trust, identity, leaf.not_valid_before_utc, leaf.not_valid_after_utc)

    @property
    def renew_at(self) -> datetime:
        """When two thirds of its life are over."""
        return self.not_before + self.life * 2 / 3

    @property
    def life(self) -> timedelta:
        return self.not_after - self.not_before

    def is_due(self, now: datetime | None = None) -> bool:
        """Tell whether it should be renewed: it is old, or it is not valid yet because a clock was wrong."""
        now = now or datetime.now(UTC)
        return now >= self.renew_at or now < self.not_before


class LiveContext(ssl.SSLContext):
    """A context that hands each new handshake to the one that is current; connections that are open keep theirs.

    A real context can't forget an authority, and between its certificate and its key another thread may begin a
    handshake: so each change is a new one, put in place by one assignment.
    """

    current: ssl.SSLContext
    anchors: frozenset[bytes]
    """Whom it trusts (DER). Never more than `current` does while one is exchanged for the other."""
    build: Callable[[Material], ssl.SSLContext]

    def use(self, material: Material) -> None:
        """Let new handshakes use `material`; raises `CertificateError` when OpenSSL does not take it."""
        try:
            made = self.build(material)
        except ssl.SSLError as error:
            raise CertificateError(f"A certificate can't be used: {error.reason}.") from None
        anchors = frozenset(made.get_ca_certs(binary_form=True))
        self.anchors = anchors & getattr(self, "anchors", anchors)
        self.current = made
        self.anchors = anchors

    def wrap_bio(self, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO, *args: Any, **kwargs: Any) -> ssl.SSLObject:
        made = self.current.wrap_bio(incoming, outgoing, *args, **kwargs)
        if isinstance(made, Watched):
            made.incoming = incoming
        return made

    def wrap_socket(self, *args: Any, **kwargs: Any) -> ssl.SSLSocket:
        return self.current.wrap_socket(*args, **kwargs)


def server_context(material: Material) -> LiveContext:
    """Return the listener's context: TLS 1.3 only, and nobody gets in without a certificate of an authority we trust.

    There are no session tickets: every connection shows its certificate anew, however long another one may last.
    """
    return _live(ssl.PROTOCOL_TLS_SERVER, _server, material)


def client_context(material: Material) -> LiveContext:
    """Return a caller's context: TLS 1.3 only, the host name is checked, and so is that it is Hearth who answers."""
    return _live(ssl.PROTOCOL_TLS_CLIENT, _client, material)


def _live(protocol: int, build: Callable[[Material], ssl.SSLContext], material: Material) -> LiveContext:
    context = LiveContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.build = build
    context.use(material)
    return context


def _server(material: Material) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.verify_mode = ssl.CERT_REQUIRED
    context.num_tickets = 0
    context.sslobject_class = Watched
    return _filled(context, material)


def _client(material: Material) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.sslsocket_class = OnlyHearth
    return _filled(context, material)


def _filled(context: ssl.SSLContext, material: Material) -> ssl.SSLContext:
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols(["http/1.1"])
    context.load_verify_locations(cadata=material.trust)
    load_pair(context, key=material.key, chain=material.chain)
    return context


def load_pair(context: ssl.SSLContext, *, key: str, chain: str) -> None:
    """Let a context show a certificate (PEM), without the key ever being on a disk."""
    descriptor = os.memfd_create("certificate", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, f"{key.strip()}\n{chain}".encode())
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)


class OnlyHearth(ssl.SSLSocket):
    """A client's connection, which ends after the handshake and before a first byte if it is not Hearth who answers."""

    def do_handshake(self, block: bool = False) -> None:
        super().do_handshake(block)
        try:
            identity = from_der(self.getpeercert(True) or b"")
            if identity.kind != "hearth":
                raise IdentityError(f"It is {identity} who answers.")
        except IdentityError as error:
            self.close()
            raise ssl.SSLCertVerificationError(1, f"This is not Hearth. {error}") from None


class Watched(ssl.SSLObject):
    """A connection to the listener. A handshake that fails is noted, and its caller gets to know why.

    Event loops end a connection whose handshake raised, before TLS's alert is sent; a caller whose certificate has
    expired would take that for a listener that is away. So this one waits, deaf, until the caller has read the alert
    and gone, or the time for a handshake is over.
    """

    incoming: ssl.MemoryBIO
    _failed = False

    def do_handshake(self) -> None:
        if not self._failed:
            try:
                super().do_handshake()
                return
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                raise
            except ssl.SSLError as error:
                reason = (
                    getattr(error, "verify_message", "") or (error.reason or "broken off").replace("_", " ").lower()
                )
                refusals.note(reason)
                self._failed = True
        self.incoming.read()
        raise ssl.SSLWantReadError(ssl.SSL_ERROR_WANT_READ, "The handshake has failed.")


class Refusals:
    """Says the first refusal of a reason at once, and then once a minute how many there were."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: dict[str, tuple[float, int]] = {}

    def note(self, reason: str) -> None:
        """Count one refusal. Reasons are OpenSSL's, or ours: a caller can't make new ones."""
        now = self._clock()
        since, count = self._seen.get(reason, (-QUIET, 0))
        if now - since < QUIET:
            self._seen[reason] = since, count + 1
            return
        again = f" ({count} more since the last such line)" if count else ""
        logger.warning("The internal listener refused a connection: %s%s.", reason, again)
        self._seen[reason] = now, 0


refusals = Refusals()
