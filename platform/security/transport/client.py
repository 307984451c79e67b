"""How agents, the operator and others call Hearth's internal listener. Imports no Django.

    with InternalClient("https://127.0.0.1:18000", certificate, key, trust) as hearth:
        hearth.renew_if_due()
        answer = hearth.post("/v1/data-keys", {"purpose": "base-backup", "object": path})

One client may be used by several threads. Its methods block.
"""

from __future__ import annotations

import contextlib
import ssl
import threading
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from security.transport.errors import CallRefused, CertificateError, NotTrusted, Unreachable
from security.transport.files import Files, Signature
from security.transport.tls import LiveContext, Material, client_context

TIMEOUT = 30.0
"""Seconds for an answer; 5 for a connection."""
KEPT, KEEP = 4, 4.0
"""Idle connections that are kept, and for how many seconds: fewer than the listener keeps them."""
MADE = "connection.connect_tcp.complete"
"""What httpcore says when a request got a connection of its own."""


class InternalClient:
    """Calls with a certificate from files, which may be renewed by this client or by somebody else at any time."""

    def __init__(self, address: str, certificate: Path, key: Path, trust: Path, *, timeout: float = TIMEOUT) -> None:
        self._address = address if "://" in address else f"https://{address}"
        self._files = Files(certificate, key, trust)
        self._timeout = httpx.Timeout(timeout, connect=min(timeout, 5.0))
        self._lock = threading.Lock()
        self._signature: Signature = ()
        self._context: LiveContext
        self._now: tuple[Material, httpx.Client] | None = None

    def get(self, path: str) -> httpx.Response:
        """Return the answer to a GET. Raises like `post`."""
        return self._send("GET", path, None, repeatable=True)

    def post(self, path: str, payload: Mapping[str, Any], *, repeatable: bool = False) -> dict[str, Any]:
        """Send a JSON object and return the one that is answered.

        A kept connection may end at the moment in which it is used, and nobody can tell whether Hearth did what was
        asked. A call that does no harm when it is made twice is `repeatable`: it is then sent again over another one.

        Raises `CertificateError` (our files), `NotTrusted` and `Unreachable` (no answer), `CallRefused` (an answer).
        """
        answer = self._send("POST", path, payload, repeatable=repeatable)
        try:
            found = answer.json()
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise CallRefused(502, "malformed", "Hearth's answer can't be read.", "Is this the internal listener?")
        return found

    def renew_if_due(self, now: datetime | None = None) -> bool:
        """Renew our certificate when two thirds of its life are over; tell whether that was done. Raises like `post`.

        A certificate that has expired can't renew itself: that is `CertificateError`, and Hearth must give a new one.
        """
        material, _ = self._ready()
        now = now or datetime.now(UTC)
        if now >= material.not_after:
            raise CertificateError(
                f"The certificate of {material.identity} ended at {material.not_after.isoformat()}, or this machine's "
                "clock is wrong. It can't renew itself any more: Hearth has to give a new one."
            )
        if material.is_due(now):
            self.renew()
            return True
        return False

    def renew(self) -> Material:
        """Have a new key signed for our identity and use it from now on."""
        csr, key = self._files.request()
        issued = self.sign(csr)
        return self._files.install(issued["chain"], key, issued["trust"])

    def sign(self, csr: bytes) -> dict[str, str]:
        """Return {chain, trust, not_after} for a request (PEM) of our own, for who keeps files in another way."""
        # Signed twice, there is one more certificate, whose key is the same.
        answer = self.post("/v1/certificate", {"csr": csr.decode()}, repeatable=True)
        if not all(isinstance(answer.get(name), str) for name in ("chain", "trust", "not_after")):
            raise CallRefused(502, "malformed", "Hearth's answer can't be read.", "Is this the internal listener?")
        return answer

    def close(self) -> None:
        """End its connections. It may be used again."""
        with self._lock:
            if self._now is not None:
                self._now[1].close()
            self._now = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _send(self, method: str, path: str, payload: Mapping[str, Any] | None, *, repeatable: bool) -> httpx.Response:
        _, http = self._ready()
        with _typed(self._address):
            answer = _asked(http, http.build_request(method, path, json=payload), tries=KEPT + 1 if repeatable else 1)
        if answer.is_success:
            return answer
        raise _refusal(answer)

    def _ready(self) -> tuple[Material, httpx.Client]:
        """Use the files as they are now. Files that can't be used are no fault as long as older ones are in memory."""
        with self._lock:
            try:
                if self._now is None or self._files.signature != self._signature:
                    self._now = self._use(self._files.signature)
            except CertificateError:
                if self._now is None:
                    raise
            return self._now

    def _use(self, signature: Signature) -> tuple[Material, httpx.Client]:
        material = self._files.read()
        if self._now is None:
            self._context = client_context(material)
            limits = httpx.Limits(max_keepalive_connections=KEPT, keepalive_expiry=KEEP)
            http = httpx.Client(
                base_url=self._address, verify=self._context, timeout=self._timeout, limits=limits, trust_env=False
            )
        else:
            self._context.use(material)
            http = self._now[1]
        self._signature = signature
        return material, http


def _asked(http: httpx.Client, request: httpx.Request, tries: int) -> httpx.Response:
    """Send the request, again where the connection was a kept one and ended instead of an answer (RFC 9112, 9.3.1)."""
    fresh: list[str] = []
    request.extensions["trace"] = lambda event, _: fresh.append(event) if event == MADE else None
    while True:
        tries -= 1
        try:
            return http.send(request)
        except (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError):
            if fresh or not tries:  # a new connection that ends is Hearth's last word
                raise


@contextlib.contextmanager
def _typed(address: str) -> Iterator[None]:
    try:
        yield
    except httpx.TransportError as error:
        if (fault := _tls_fault(error)) is not None:
            raise NotTrusted(f"{address} and this certificate don't trust one another: {fault}.") from None
        raise Unreachable(f"Hearth does not answer at {address}: {error or type(error).__name__}.") from None


def _tls_fault(error: BaseException | None) -> str | None:
    """Return what TLS said, when it was that."""
    while error is not None:
        if isinstance(error, ssl.SSLError):
            return getattr(error, "verify_message", "") or str(error)
        error = error.__cause__ or error.__context__
    return None


def _refusal(answer: httpx.Response) -> CallRefused:
    try:
        found = answer.json()
        return CallRefused(answer.status_code, str(found["type"]), str(found["title"]), str(found["detail"]))
    except (ValueError, KeyError, TypeError):
        return CallRefused(answer.status_code, "unknown", f"Hearth answered {answer.status_code}.", "")
