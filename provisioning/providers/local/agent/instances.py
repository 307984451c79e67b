"""The verbs on instances: units of this machine that hold what was brought back of a server's backups."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from provisioning.providers import base
from provisioning.providers.base import Progress, ProviderError, Recovering, ServerSpec
from provisioning.providers.local import configuration, postgres
from provisioning.providers.local.agent import engine, exchange
from provisioning.providers.local.agent.database import SUPERUSER
from provisioning.providers.local.agent.machine import disk_error
from provisioning.providers.local.agent.recovery import OURS
from provisioning.providers.local.agent.server import ManagedServer
from provisioning.providers.local.postgres import PostgresError

if TYPE_CHECKING:
    from provisioning.providers.local.agent.fleet import Fleet

SINCE = Path(base.__file__).with_name("since.sql")
ANSWER_WITHIN = 30.0
"""Seconds in which a server's database must say what is true of now."""


class Instances:
    """Of one fleet."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet

    async def boot(self) -> None:
        """Bring exchanges to their end that a crash cut off. Before anything of a server is touched or started."""
        for server in list(self._fleet.servers.values()):
            if server.unit.exchanging:
                try:
                    await self._finish(server)
                except (OSError, ProviderError) as error:
                    server.blocker = disk_error(error) if isinstance(error, OSError) else error

    async def settle(self, server_id: str) -> None:
        """Bring to its end, before any other verb, an exchange that was begun and that this unit is part of."""
        for server in list(self._fleet.servers.values()):
            if server_id in _both(server):
                async with AsyncExitStack() as stack:
                    for key in sorted(_both(server)):
                        if key in self._fleet.servers:
                            await stack.enter_async_context(self._fleet.servers[key].lock)
                    if server.unit.exchanging:
                        await self._finish(server)

    # --- bringing back -------------------------------------------------------------------------------------------

    async def recover(self, spec: ServerSpec, recovery: Mapping[str, Any], fence: int, progress: Progress) -> None:
        """Begin to bring backups back into an instance, or go on; see `Provider.recover`."""
        fleet, instance, holder = self._fleet, spec.server_id, str(recovery["holder"])
        fleet.enter(instance, fence)
        engine.checked(recovery, "request", OURS)
        known = fleet.servers.get(instance)
        if instance in (holder, recovery["source"]) or (known is not None and not known.unit.instance_of):
            raise ProviderError(
                "Backups are never brought back onto a server itself. Nothing was changed.",
                code="BadRequest",
                retry=False,
            )
        if holder not in fleet.servers or not fleet.servers[holder].folder.credentials.address:
            raise ProviderError(
                "The server's agent has no certificate on this machine yet, with which it could ask for the keys of "
                "the backups. Nothing was changed. It gets one by itself; try again in a minute.",
                code="NoIdentity",
            )
        if known is None:
            fleet.found(spec, fence, instance_of=holder)
        async with fleet.alone(instance, fence) as server:
            if server.unit.wanted:
                server.unit.wanted = False
                server.folder.save()
            await server.stop()
            server.folder.make()
            await server.recovery.begin(recovery, spec.secrets)
        progress("The backups are being brought back.")

    def recovering(self, instance: str) -> dict[str, Any]:
        """Return how far that is."""
        server = self._fleet.servers.get(instance)
        if server is None:
            return dataclasses.asdict(Recovering())
        ours = self._fleet.servers.get(server.unit.instance_of)
        journal = ours.unit.exchanging if ours is not None and instance in _both(ours) else {}
        # What is written down will be made, whoever was told that it failed.
        exchanged = bool(journal["restored"]) if journal else server.unit.exchanged
        return dataclasses.asdict(dataclasses.replace(server.recovery.seen, exchanged=exchanged))

    async def cancel(self, instance: str, fence: int) -> None:
        """End it; what was fetched stays."""
        async with self._fleet.alone(instance, fence) as server:
            await server.recovery.cancel()

    async def since(self, server_id: str) -> dict[str, Any] | None:
        """Return what the server's own database says of now; None if it can't be asked."""
        server = self._fleet.servers.get(server_id)
        if server is None:
            return None
        try:
            if server.postgres.state == "running":
                return await _ask(server)
            async with server.lock:
                if any(server_id in _both(each) for each in self._fleet.servers.values()):
                    return None  # its folders are on their way: a start would make new ones
                async with server.database():
                    return await _ask(server)
        except (PostgresError, ProviderError, OSError, ValueError):
            return None

    # --- the exchange --------------------------------------------------------------------------------------------

    async def exchange(self, server_id: str, instance: str, fence: int, progress: Progress, *, restored: bool) -> None:
        """Let the server have what was restored, or what it had before; see `Provider.exchange`."""
        async with AsyncExitStack() as stack:
            for key in sorted((server_id, instance)):
                await stack.enter_async_context(self._fleet.alone(key, fence))
            ours, other = self._fleet.known(server_id), self._fleet.known(instance)
            if other.unit.instance_of != server_id or ours.unit.instance_of:
                raise ProviderError(
                    "That is no instance of this server. Nothing was changed.", code="BadRequest", retry=False
                )
            if not other.recovery.restored:
                raise ProviderError(
                    "What is brought back is not whole yet, so the server goes on as it is. Nothing was changed.",
                    code="NotRestored",
                    retry=other.recovery.running,
                )
            for one in (ours, other):
                one.unit.wanted = False
                one.folder.save()
            await asyncio.gather(ours.stop(), other.stop())
            if other.unit.exchanged == restored:
                progress("The server has that already.")
                return
            for one in (ours, other):
                one.folder.make()
            exchange.begin(ours.folder, other.folder, restored=restored)
            await self._finish(ours)
            progress("The server has what was restored." if restored else "The server has its own data again.")

    async def _finish(self, server: ManagedServer) -> None:
        instance = server.unit.exchanging["instance"]
        other = self._fleet.servers.get(instance)
        if other is None:
            raise ProviderError(
                f"The server's data were being exchanged with those of {instance}, whose folder is gone or damaged. "
                "Nothing was started. Staff must bring that folder back.",
                code="ExchangeBroken",
                retry=False,
            )
        # All of it takes milliseconds, and nothing else may happen meanwhile: no thread.
        exchange.finish(server.folder, other.folder)
        for one in (server, other):
            one.rebuild()
            one.blocker = None


def _both(server: ManagedServer) -> tuple[str, ...]:
    """Return the two ids of an exchange that this server's journal says is under way; none where it says nothing."""
    journal = server.unit.exchanging
    return (server.unit.server_id, str(journal["instance"])) if journal else ()


async def _ask(server: ManagedServer) -> dict[str, Any]:
    async with asyncio.timeout(ANSWER_WITHIN):
        lines = await postgres.execute(
            SINCE,
            server.folder.data,
            server.folder.sockets,
            user=SUPERUSER,
            password=server.unit.superuser_password,
            database=configuration.DATABASE,
            timeout=ANSWER_WITHIN / 2,
        )
    found: dict[str, Any] = json.loads("\n".join(lines))
    return found
