"""All servers of this machine, and the verbs of the provider protocol on them."""

from __future__ import annotations

import asyncio
import dataclasses
import errno
import os
import shutil
import sys
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from provisioning.providers.base import Observation, Progress, ProviderError, ServerSpec, StaleFence
from provisioning.providers.local import environments, postgres
from provisioning.providers.local.agent import usage
from provisioning.providers.local.agent.credentials import Credentials
from provisioning.providers.local.agent.files import REMOVED, Tombstones, UnitFile, load_units
from provisioning.providers.local.agent.instances import Instances
from provisioning.providers.local.agent.machine import Machine, disk_error
from provisioning.providers.local.agent.server import ManagedServer
from provisioning.providers.local.keys import KeyUnreadable
from provisioning.providers.local.postgres import PostgresError
from provisioning.providers.local.processes import Refused

STARTS_AT_ONCE = 4
START_TURN = 30.0
"""Seconds after which a start that still does not answer lets the next server have its turn."""
DISK_SECONDS, USE_SECONDS = 60.0, 20.0
"""How old the figures of a server's disk, and of its memory and processor, may get."""
DISK_BUDGET = 2.0
"""Seconds that one look may spend on walking folders; the rest is walked in the next looks."""
RETRY_SECONDS = 15.0


class Fleet:
    """Every server that has a folder here."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.servers: dict[str, ManagedServer] = {}
        self._tombstones = Tombstones(machine.servers)
        self._fences: dict[str, int] = {}
        self._disk: dict[str, tuple[float, int, int]] = {}
        self._use: dict[str, usage.Use] = {}
        self._use_at: tuple[float, object] = (0.0, None)
        self._gate = asyncio.Semaphore(STARTS_AT_ONCE)
        self._tasks: set[asyncio.Task[None]] = set()
        self.instances = Instances(self)

    # --- the agent's own start and end ---------------------------------------------------------------------------

    async def boot(self) -> None:
        """Clear what a crash left half-made or half-removed, and start all that should run."""
        for rest in (*self.machine.servers.glob(f"{REMOVED}*"), *self.machine.servers.glob(".new-*")):
            await asyncio.to_thread(shutil.rmtree, rest, ignore_errors=True)
        units = list(load_units(self.machine.servers))
        for unit in units:
            self.servers[unit.server_id] = ManagedServer(self.machine, unit)
            self._fences[unit.server_id] = unit.fence
        await self.instances.boot()
        for server in self.servers.values():
            moved = self.machine.settle(server.unit, units)
            await asyncio.to_thread(server.folder.own)
            if moved:
                server.folder.save()
                server.rebuild()
        for server in self.servers.values():
            server.recovery.resume()
            if server.unit.wanted:
                task = asyncio.create_task(self._revive(server), name=f"revive {server.unit.server_id}")
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def _revive(self, server: ManagedServer) -> None:
        """Bring a server up after the agent's start, for as long as it is wanted.

        A few at a time, each until it answers: hundreds that import Synapse at once would all be late.
        """
        while True:
            async with self._gate:
                if await self._try(server):
                    await server.settled(START_TURN)
                    return
            await asyncio.sleep(RETRY_SECONDS)

    async def _try(self, server: ManagedServer) -> bool:
        async with server.lock:
            if not server.unit.wanted:
                return True
            try:
                await server.bring_up(_to_stderr)
                return True
            except ProviderError as error:
                server.blocker = error
            except OSError as error:
                server.blocker = disk_error(error)
            return False

    async def shut_down(self) -> None:
        """Stop all Synapses, then all databases, each group at once. What is wanted stays written down."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        ends = [end() for server in self.servers.values() for end in (server.stop, server.recovery.pause)]
        await asyncio.gather(*ends, return_exceptions=True)

    # --- the verbs -----------------------------------------------------------------------------------------------

    async def prepare(self, version: str, progress: Progress) -> None:
        """Make the environment of a Synapse version."""
        cache = self.machine.state / "cache" / "uv"
        await environments.ensure(self.machine.environments, version, progress=progress, cache=cache)

    async def ensure_storage(self, spec: ServerSpec, fence: int, progress: Progress) -> None:
        """Make the server's place and its empty running database."""
        self.enter(spec.server_id, fence)
        if spec.server_id not in self.servers:
            self.found(spec, fence)
        async with self.alone(spec.server_id, fence) as server:
            await server.ensure_storage(spec, progress)

    async def configure(self, spec: ServerSpec, fence: int, progress: Progress) -> None:
        """Write configuration and secrets."""
        async with self.alone(spec.server_id, fence) as server:
            await server.configure(spec, progress)

    async def start(self, spec: ServerSpec, fence: int, progress: Progress) -> str:
        """Start it and wait until it answers."""
        async with self.alone(spec.server_id, fence) as server:
            return await server.start(progress)

    async def stop(self, server_id: str, fence: int, progress: Progress) -> None:
        """Stop it and keep it stopped."""
        async with self.alone(server_id, fence) as server:
            server.unit.wanted = False
            server.folder.save()
            await server.stop()
            progress("Synapse and PostgreSQL have ended.")

    async def remove(self, server_id: str, fence: int, progress: Progress) -> None:
        """Remove everything of it."""
        self.enter(server_id, fence)
        if server_id not in self.servers:
            self._tombstones.add(server_id, fence)
            return
        async with self.alone(server_id, fence) as server:
            # First the stone: a worker that comes late, even after a crash right here, can't make it again.
            self._tombstones.add(server_id, fence)
            server.unit.wanted = False
            server.folder.save()
            await asyncio.gather(server.stop(), server.recovery.pause())
            async with server.certifying:
                await server.folder.remove()
                del self.servers[server_id]
            self._disk.pop(server_id, None)
        progress("Every file of the server is removed.")

    async def certificate_request(self, server_id: str, fence: int) -> str:
        """Return a request (PEM) for the certificate of its agent; the key stays here."""
        async with self._certifying(server_id, fence) as credentials:
            return (await asyncio.to_thread(credentials.request)).decode()

    async def install_certificate(self, server_id: str, fence: int, chain: str, trust: str, address: str) -> None:
        """Let its agent use the certificate that Hearth gave for its request."""
        async with self._certifying(server_id, fence) as credentials:
            await asyncio.to_thread(credentials.install, chain, trust, address)

    @asynccontextmanager
    async def _certifying(self, server_id: str, fence: int) -> AsyncIterator[Credentials]:
        self.enter(server_id, fence)
        server = self.known(server_id)
        async with server.certifying:
            self.enter(server_id, fence)
            yield self.known(server_id).folder.credentials

    def enter(self, server_id: str, fence: int) -> None:
        """Refuse a fence below the highest that was seen, and remember a higher one at once."""
        check_id(server_id)
        seen = max(self._fences.get(server_id, 0), self._tombstones.fence(server_id))
        if fence < seen:
            raise StaleFence("A newer worker has taken over this server. This one stops; nothing is lost.")
        self._fences[server_id] = fence

    @asynccontextmanager
    async def alone(self, server_id: str, fence: int) -> AsyncIterator[ManagedServer]:
        """Have the server for one verb, unless a newer worker came while we waited for it."""
        self.enter(server_id, fence)
        await self.instances.settle(server_id)
        server = self.known(server_id)
        async with server.lock:
            self.enter(server_id, fence)
            server = self.known(server_id)
            if server.unit.fence < fence:
                server.unit.fence = fence
                server.folder.save()
            try:
                yield server
            except PostgresError as error:
                raise _database_error(error, server.folder.log_tail("postgres")) from None
            except KeyUnreadable as error:
                raise ProviderError(f"{error} Nothing was changed.", code="BadRequest", retry=False) from None
            except Refused as refusal:
                raise ProviderError(refusal.message, code=refusal.reason, retry=False) from None
            finally:
                # What it uses has changed; figures from the middle of it would be shown as its first ones.
                self._disk.pop(server_id, None)

    def known(self, server_id: str) -> ManagedServer:
        """Return the server, or raise `ProviderError` where there is none."""
        try:
            return self.servers[server_id]
        except KeyError:
            raise ProviderError(
                "This machine has no such server. Nothing was changed. Retry from the first step.",
                code="NoSuchServer",
                retry=False,
            ) from None

    def found(self, spec: ServerSpec, fence: int, *, instance_of: str = "") -> None:
        """Write down a new server: from here on its user id and its ports are taken."""
        units = [server.unit for server in self.servers.values()]
        uid, gid = self.machine.new_identity(units)
        port, metrics_port = self.machine.new_ports(units)
        unit = UnitFile(
            server_id=spec.server_id,
            server_name=spec.server_name,
            version=spec.version,
            port=port,
            metrics_port=metrics_port,
            uid=uid,
            gid=gid,
            superuser_password=postgres.new_password(),
            fence=fence,
            instance_of=instance_of,
        )
        server = ManagedServer(self.machine, unit)
        if (server.folder.data).exists():
            raise ProviderError(
                "This machine has data of the server, but its unit file is missing or damaged. Nothing was changed. "
                "Staff must bring the unit file back.",
                code="UnitFileDamaged",
                retry=False,
            )
        server.folder.make()
        server.folder.save()
        self.servers[spec.server_id] = server

    # --- what is there -------------------------------------------------------------------------------------------

    async def observe(self) -> dict[str, dict[str, Any]]:
        """Return each server's observation as a plain dict."""
        await self._measure_use()
        await asyncio.to_thread(self._measure_disks, dict(self.servers))
        return {
            key: dataclasses.asdict(self._see(server, self._use.get(key, usage.Use())))
            for key, server in list(self.servers.items())
        }

    def _see(self, server: ManagedServer, used: usage.Use) -> Observation:
        unit = server.unit
        running, reason, message = server.state()
        _, disk_bytes, media_bytes = self._disk.get(unit.server_id, (0.0, 0, 0))
        return Observation(
            server_id=unit.server_id,
            exists=True,
            running=running,
            reason=reason,
            message=message,
            homeserver_url=server.folder.places.url,
            metrics_url=server.folder.places.metrics_url,
            version=server.version if server.synapse.state == "running" else unit.version,
            signing_key_id=unit.key_id,
            isolation=self.machine.isolation,
            crashes=unit.crashes,
            started_at=server.synapse.started_at if unit.wanted else None,
            suspended=unit.suspended,
            # An instance asks for nothing in its own name.
            certificate_wanted="" if unit.instance_of else server.folder.credentials.wanted(),
            internal_address=server.folder.credentials.address,
            memory_bytes=used.memory_bytes,
            cpu_seconds=used.cpu_seconds,
            disk_bytes=disk_bytes,
            media_bytes=media_bytes,
            details={
                "uid": unit.uid,
                "synapse_pid": server.synapse.pid,
                "postgres_pid": server.postgres.pid,
                "backup": server.backup.observed,
                "instance_of": unit.instance_of,
            },
        )

    async def _measure_use(self) -> None:
        """Read memory and processor time, unless that was just done: each process costs about a millisecond."""
        pids = {key: server.pids for key, server in self.servers.items()}
        at, before = self._use_at
        if pids != before or time.monotonic() - at >= USE_SECONDS:
            self._use = await asyncio.to_thread(usage.measure, pids)
            self._use_at = (time.monotonic(), pids)

    def _measure_disks(self, servers: dict[str, ManagedServer]) -> None:
        now = time.monotonic()
        old = {key: self._disk.get(key, (0.0, 0, 0))[0] for key in servers}
        for key in sorted(old, key=lambda key: old[key]):
            if time.monotonic() - now > DISK_BUDGET or (key in self._disk and now - old[key] < DISK_SECONDS):
                break
            folder = servers[key].folder
            media = [folder.places.media / name for name in ("local_content", "local_thumbnails")]
            self._disk[key] = (now, usage.disk([folder.path]), usage.disk(media))


def _database_error(error: PostgresError, log: str) -> ProviderError:
    """Say why the database failed; its log knows more than its client."""
    if os.strerror(errno.ENOSPC) in f"{error}{log}":
        return disk_error(OSError(errno.ENOSPC, ""))
    return ProviderError(f"{error} Nothing was lost; retry.{log}", code="DatabaseFailed")


def check_id(server_id: str) -> None:
    """Refuse what is no UUID in its usual form: it becomes the name of a folder."""
    try:
        if str(uuid.UUID(server_id)) == server_id:
            return
    except ValueError:
        pass
    raise ProviderError(f"{server_id!r} is not a server's id.", code="BadRequest", retry=False)


def _to_stderr(text: str) -> None:
    print(text, file=sys.stderr, flush=True)  # noqa: T201 (the agent's log)
