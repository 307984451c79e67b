"""The internal listener: a second HTTP server inside the web process, for callers with a certificate. No Django.

It lives in the web process because one of its own would cost 100 MB. Its socket, its TLS, its routes and its limits are
its own; a fault here ends nothing there.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Protocol, Self

import uvicorn
from cryptography import x509

from security.transport.identities import CALLER, Identity, of_certificate
from security.transport.limits import LimitedProtocol
from security.transport.tls import LiveContext, refusals

logger = logging.getLogger(__name__)
App = Callable[[Any, Any, Any], Awaitable[None]]
HANDSHAKE, FIRST_REQUEST, REQUEST = 10.0, 10.0, 30.0
"""Seconds for a handshake, then until something is asked, and until all of it has arrived."""
CONNECTIONS = 64
"""Connections of one caller at a time: one that ran away takes no other's."""
LAST = 6.0
"""Seconds before a certificate's end from which on each answer is its connection's last, and says so: more than an idle
connection is kept, so that none ends in a caller's hands."""
GOODBYE, RESTART = 1.0, 1.0
"""Seconds for calls in progress when Hearth stops, for a connection's good end, and until a new try after a fault."""


class Certificates(Protocol):
    """What the listener needs of `certificates.Keeper`."""

    context: LiveContext | None

    def look(self) -> bool: ...

    @property
    def wait(self) -> float: ...


class InternalProtocol(LimitedProtocol):
    """uvicorn's HTTP/1.1, with the caller in each request's scope. ASGI servers don't tell whom TLS has verified."""

    caller: Identity | None = None
    until: float = 0.0
    context: LiveContext
    _end: asyncio.TimerHandle | None = None
    _callers: Counter[Identity]
    _anchors: frozenset[bytes] = frozenset()

    def meet(self, context: LiveContext, callers: Counter[Identity]) -> Self:
        """Say by which context the handshake that now begins is made, and how many connections each caller has."""
        self.context, self._anchors, self._callers = context, context.anchors, callers
        return self

    def connection_made(self, transport: Any) -> None:
        self.arrives = REQUEST
        super().connection_made(transport)
        self.access_log = False
        try:
            certificate = x509.load_der_x509_certificate(transport.get_extra_info("ssl_object").getpeercert(True))
            caller, self.until = of_certificate(certificate), certificate.not_valid_after_utc.timestamp()
        except ValueError:  # an `IdentityError`, or a certificate that one library reads and another doesn't
            refusals.note("the certificate names nobody that Hearth knows")
            transport.close()
            return
        if self._callers[caller] >= CONNECTIONS:
            refusals.note("one caller has too many connections")
            transport.close()
            return
        self.caller = caller
        self._callers[caller] += 1
        self._end = self.loop.call_later(max(0.0, self.until - time.time()), self._end_it)
        self.timeout_keep_alive_task = self.loop.call_later(FIRST_REQUEST, self.timeout_keep_alive_handler)

    def data_received(self, data: bytes) -> None:
        if self._over():
            self.transport.close()
            return
        super().data_received(data)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        scope: dict[str, Any] = self.scope  # type: ignore[assignment]  # ASGI lets servers add to it
        scope[CALLER] = self.caller

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        if time.time() >= self.until - LAST:
            self.cycle.keep_alive = False

    def on_response_complete(self) -> None:
        if self._over():  # more may have been asked, and be waiting for its turn
            self.transport.close()
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._end is not None:
            self._end.cancel()
        if self.caller is not None:
            self._callers[self.caller] -= 1
            if not self._callers[self.caller]:
                del self._callers[self.caller]
        super().connection_lost(exc)

    def _end_it(self) -> None:
        """End the connection with its certificate. What arrived in time is answered; `data_received` takes no more."""
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()
        else:
            self.cycle.keep_alive = False

    def _over(self) -> bool:
        """Tell whether nothing more is done for this connection: nobody calls, the certificate has ended (besides the
        timer: the clock may have been set), or an authority is trusted no more, which may be the one that signed."""
        return self.caller is None or time.time() >= self.until or not self._anchors <= self.context.anchors


class _Server(uvicorn.Server):
    """uvicorn's server without its signals, which belong to the public one, and with limits for handshakes."""

    context: LiveContext

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        loop, callers = asyncio.get_running_loop(), Counter[Identity]()

        def protocol() -> InternalProtocol:
            made = InternalProtocol(config=self.config, server_state=self.server_state, app_state={}, _loop=loop)
            return made.meet(self.context, callers)

        self.servers = [
            await loop.create_server(
                protocol, sock=each, ssl=self.context, ssl_handshake_timeout=HANDSHAKE, ssl_shutdown_timeout=GOODBYE
            )
            for each in sockets or []
        ]
        self.started = True


class Listener:
    """Takes its address at `start`, listens as soon as there is a certificate, and goes on until `stop`."""

    def __init__(self, app: App, certificates: Certificates, host: str, port: int) -> None:
        self._app, self._certificates = app, certificates
        self._address = (host, port)
        self._server: _Server | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Take the address, or raise `OSError` with a sentence; the rest goes on by itself."""
        self._task = asyncio.create_task(self._run(bind(*self._address)))

    async def stop(self) -> None:
        """End it; calls in progress have a moment."""
        if self._task is None:
            return
        if self._server is not None:
            self._server.should_exit = True
            await asyncio.wait([self._task], timeout=GOODBYE + 1)
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    @property
    def listens(self) -> bool:
        return self._server is not None and self._server.started

    async def _run(self, bound: socket.socket | None) -> None:
        while True:
            try:
                with bound or bind(*self._address) as each:
                    await self._serve(each)
                return
            except Exception:  # whatever it is: the pages go on, and so does this
                logger.exception("The internal listener failed. It is started again.")
            bound = None
            await asyncio.sleep(RESTART)

    async def _serve(self, bound: socket.socket) -> None:
        while True:
            if await asyncio.to_thread(self._certificates.look) and self._certificates.context is not None:
                break
            await asyncio.sleep(self._certificates.wait)
        self._server = _Server(_config(self._app))
        self._server.context = self._certificates.context
        fresh = asyncio.create_task(self._keep_fresh())
        try:
            await self._server.serve(sockets=[bound])
        finally:
            fresh.cancel()

    async def _keep_fresh(self) -> None:
        while True:
            await asyncio.sleep(self._certificates.wait)
            await asyncio.to_thread(self._certificates.look)


def _config(app: App) -> uvicorn.Config:
    """Return uvicorn's configuration. Nothing of it touches logging, which is the process's own."""
    return uvicorn.Config(
        app,
        http=InternalProtocol,
        ws="none",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=int(GOODBYE),
    )


def bind(host: str, port: int) -> socket.socket:
    """Return a socket that holds the address but does not listen yet, or raise `OSError` with a sentence."""
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind(("127.0.0.1" if host == "localhost" else host, port))
    except OSError as error:
        bound.close()
        raise OSError(taken(host, port, error)) from None
    return bound


def taken(host: str, port: int, error: OSError) -> str:
    """Return the sentence for an address that can't be listened on."""
    return (
        f"Hearth can't listen for internal calls on {host} port {port}: {os.strerror(error.errno or 0)}. Nothing was "
        f"started. Choose another port, for example: HEARTH_INTERNAL_PORT={port + 1 if port < 65535 else 18000}"
    )
