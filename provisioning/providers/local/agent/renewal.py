"""Renews the certificates of this machine's agents in time, over the conversation that they are for.

While Hearth does not answer, the same question comes less and less often, for all servers together. When Hearth and an
agent don't trust one another, asking again in the same way has no sense: the agent says so, and Hearth, which looks at
it every few seconds, signs through the agent's own socket.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from datetime import UTC, datetime

from provisioning.providers.base import ProviderError
from provisioning.providers.local.agent.credentials import Credentials
from provisioning.providers.local.agent.server import ManagedServer
from security.transport.errors import CallRefused, NotTrusted, TransportError, Unreachable

LOOK, SOONEST = 5.0, 0.5
"""Seconds between two looks at the clock, at most and at least: it may jump, and certificates come meanwhile."""
FIRST_WAIT, LONGEST_WAIT = 5.0, 900.0
"""Seconds before Hearth is asked again when it does not answer: twice as long each time."""
ANSWER_WITHIN = 10.0
Answer = tuple[str, str]
"""Chain and trust, both PEM."""


def ask(credentials: Credentials, request: bytes) -> Answer:
    """Have Hearth sign `request` for the identity that `credentials` already prove. Raises `TransportError`."""
    # httpx is 10 MB and 0.1 s; the first renewal is days away.
    from security.transport.client import InternalClient  # noqa: PLC0415

    pair = credentials.pair_file
    with InternalClient(credentials.address, pair, pair, credentials.trust, timeout=ANSWER_WITHIN) as client:
        signed = client.sign(request)
    return signed["chain"], signed["trust"]


class Renewals:
    """Keeps the certificates of `servers` young."""

    def __init__(self, servers: Mapping[str, ManagedServer], ask: Callable[[Credentials, bytes], Answer] = ask) -> None:
        self._servers = servers
        self._ask = ask
        self._wait = 0.0
        self._later: dict[str, float] = {}

    async def keep(self) -> None:
        """Renew what is due, for ever."""
        while True:
            await asyncio.sleep(self.pause())
            try:
                await self.look()
            except Exception:
                # A fault of ours here must not let every certificate of this machine end.
                traceback.print_exc(file=sys.stderr)

    def pause(self) -> float:
        """Return the seconds until the next look has sense."""
        soonest = min((self._due_in(server) for server in self._servers.values()), default=LOOK)
        return max(min(soonest, LOOK), SOONEST, self._wait)

    def _due_in(self, server: ManagedServer) -> float:
        material, now = server.folder.credentials.material, datetime.now(UTC)
        if material is None or not material.not_before <= now < material.not_after:
            return LOOK  # only Hearth can help
        later = self._later.get(server.unit.server_id, 0.0) - time.monotonic()
        return max((material.renew_at - now).total_seconds(), later)

    async def look(self) -> None:
        """Renew each certificate that is due, until Hearth turns out to be away."""
        self._later = {key: until for key, until in self._later.items() if key in self._servers}
        for server_id, server in list(self._servers.items()):
            if not server.folder.credentials.due() or time.monotonic() < self._later.get(server_id, 0.0):
                continue
            try:
                await self._renew(server)
            except (TransportError, ProviderError, OSError) as error:
                if _away(error):
                    self._put_off(error)
                    return
                self._refused(server, error)
            self._wait = 0.0

    async def _renew(self, server: ManagedServer) -> None:
        """Ask for one certificate. The lock is free meanwhile: one may come through the socket at any time."""
        credentials = server.folder.credentials
        async with server.certifying:
            request = await asyncio.to_thread(credentials.request)
        chain, trust = await asyncio.to_thread(self._ask, credentials, request)
        async with server.certifying:
            if server.unit.server_id in self._servers:
                await asyncio.to_thread(credentials.install, chain, trust, credentials.address)

    def _put_off(self, error: Exception) -> None:
        if not self._wait:
            _say(f"Certificates wait to be renewed: {error}")
        self._wait = min(max(FIRST_WAIT, 2 * self._wait), LONGEST_WAIT)

    def _refused(self, server: ManagedServer, error: Exception) -> None:
        server_id = server.unit.server_id
        if server_id not in self._servers:
            return  # it was removed meanwhile
        if not server.folder.credentials.refused:
            _say(f"The certificate of {server_id} is not renewed: {error}")
        server.folder.credentials.refused = True
        self._later[server_id] = time.monotonic() + LONGEST_WAIT


def _away(error: Exception) -> bool:
    """Tell whether Hearth is away or broken for everybody; else it is about this one agent."""
    if isinstance(error, CallRefused):
        return error.status >= 500
    return isinstance(error, Unreachable) and not isinstance(error, NotTrusted)


def _say(text: str) -> None:
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr, flush=True)  # noqa: T201 (the agent's log)
