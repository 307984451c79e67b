"""One homeserver on this machine: keeps its PostgreSQL and its Synapse as its unit file wants them."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

from provisioning.providers.base import Progress, ProviderError, ServerSpec
from provisioning.providers.local import environments, postgres
from provisioning.providers.local.agent import probe
from provisioning.providers.local.agent.backup import Backup
from provisioning.providers.local.agent.database import SUPERUSER, ensure_database
from provisioning.providers.local.agent.files import UnitFile
from provisioning.providers.local.agent.folder import Folder
from provisioning.providers.local.agent.machine import Machine, port_free
from provisioning.providers.local.agent.recovery import Recovery
from provisioning.providers.local.agent.watch import Watch
from provisioning.providers.local.processes import Refused, Unit

START_SECONDS = 120.0
PREWARM_SECONDS = 90.0
TRIES = 3
"""Crashes in one start after which the caller is told; the agent itself goes on trying."""


class PortTaken(Exception):
    """Somebody else listens on a port that is this server's."""


class ManagedServer:
    """Brings one server to what is wanted. The caller holds `lock` around each method that changes something."""

    def __init__(self, machine: Machine, unit: UnitFile) -> None:
        self.machine = machine
        self.unit = unit
        self.folder = Folder(machine, unit)
        self.lock = asyncio.Lock()
        self.certifying = asyncio.Lock()
        """Held while its key and certificate change: that waits for no start, and no start for it."""
        self.blocker: ProviderError | None = None
        """Why it could not even be tried to start it."""
        self.answered = False
        self._port_taken = False
        self._released = ""
        """Digest of what Synapse was let go with; empty while it is only warm."""
        self._warm_end: asyncio.TimerHandle | None = None
        self._warm_stop: asyncio.Task[None] | None = None
        self._watch = Watch(self)
        self.backup = Backup(self.folder)
        self.recovery = Recovery(self.folder)
        self.postgres = Unit(self.folder.postgres_command(), on_exit=self._count, before_start=self._before_postgres)
        self.version = unit.version
        """The Synapse version of the process, which lags behind the unit file's between configure and start."""
        self.synapse = self._synapse_unit()

    async def ensure_storage(self, spec: ServerSpec, progress: Progress) -> None:
        """Make folders, database cluster, role and database; all of them may be there already."""
        self._check_restored()
        self.folder.make()
        await self._prewarm(spec.version)
        if not (self.folder.data / "PG_VERSION").exists():
            progress("Making a PostgreSQL cluster of its own.")
            await postgres.initdb(
                self.folder.data,
                superuser=SUPERUSER,
                password=self.unit.superuser_password,
                uid=self.unit.uid,
                gid=self.unit.gid,
                capabilities=self.machine.capabilities,
                # Not below the server's own folder: initdb runs as a user who may not pass it.
                staging=self.machine.servers / f".new-{self.unit.server_id}",
                programs=self.machine.programs,
            )
        await self.postgres.start()
        if await self._database(spec):
            progress("PostgreSQL runs with an empty database.")

    async def configure(self, spec: ServerSpec, progress: Progress) -> None:
        """Write configuration and secrets; the signing key only once, afterwards it is compared."""
        self.folder.make()
        if self.folder.configure(spec):
            progress("Wrote the configuration.")
        if self.backup.configure(spec.backup):
            progress("Wrote down what backs it up." if spec.backup else "It is not backed up any more.")
        self.unit.version, self.unit.suspended, self.unit.configured = spec.version, spec.suspended, True
        self.folder.save()

    async def start(self, progress: Progress) -> str:
        """Let it run with what is configured, and return its address once it answers."""
        self._check_restored()
        if not self.unit.configured:
            raise ProviderError("The server has no configuration yet. Retry from the first step.", code="NotConfigured")
        self.unit.wanted = True
        self.folder.save()
        await self.bring_up(progress)
        crashes, end = self.unit.crashes, time.monotonic() + START_SECONDS
        while not await self.answers():
            self._give_up(crashes, late=time.monotonic() > end)
            await asyncio.sleep(0.01)
        self.answered = True
        progress(f"Synapse {self.unit.version} answers at {self.folder.places.url}.")
        return self.folder.places.url

    async def bring_up(self, progress: Progress) -> None:
        """Start both processes, or Synapse again if it runs with something else than what is written now."""
        self._check_restored()
        await self._environment(progress)
        self.folder.make()
        self.folder.relocate()
        digest = self.folder.digest()
        if self._released and (self._released != digest or self.synapse.state == "refused"):
            progress("Starting Synapse again, because something was changed.")
            await self._stop_synapse()
        if self.version != self.unit.version:
            await self._stop_synapse()
            self.version = self.unit.version
            self.synapse = self._synapse_unit()
        self._cool()
        warm, self._released = not self._released, digest
        if warm and self.synapse.state == "running":
            await self._release()
        await asyncio.gather(self.postgres.start(), self.synapse.start())
        self._watch.start()
        await self.backup.apply()

    def rebuild(self) -> None:
        """Let both processes be those of the unit as it is now: it may have got another user. Neither runs."""
        self.postgres = Unit(self.folder.postgres_command(), on_exit=self._count, before_start=self._before_postgres)
        self.synapse = self._synapse_unit()

    @contextlib.asynccontextmanager
    async def database(self) -> AsyncIterator[None]:
        """Have the database run for a while, also of a server that is stopped. The caller holds the lock."""
        self._check_restored()
        alone = self.postgres.state == "stopped"
        try:
            await self.postgres.start()
            yield
        finally:
            if alone:
                await self.postgres.stop()

    async def settled(self, seconds: float) -> None:
        """Wait until it answers, need not run, or stays down for a reason; `seconds` at most."""
        end = time.monotonic() + seconds
        while self.state()[1] == "Starting":
            await asyncio.sleep(0.1)
            if time.monotonic() > end:
                return

    async def stop(self) -> None:
        """Stop Synapse and what backs it up, then its database."""
        await asyncio.gather(self._stop_synapse(), self.backup.stop())
        await self.postgres.stop()

    @property
    def pids(self) -> tuple[int, ...]:
        """The processes that run now."""
        return tuple(pid for pid in (self.postgres.pid, self.synapse.pid) if pid is not None)

    def state(self) -> tuple[bool, str, str]:
        """Return whether it runs and answers, else a named reason with a sentence (empty if it need not run)."""
        synapse, database = self.synapse, self.postgres
        causes = (
            (self.blocker is not None, self.blocker.code if self.blocker else "", str(self.blocker)),
            (not self._released, "Starting", "It waits to be started: this machine starts a few servers at a time."),
            (synapse.state == "refused", synapse.reason, synapse.message),
            (self._port_taken, "PortTaken", synapse.message),
            (database.state != "running", "DatabaseDown", f"Its PostgreSQL is being started again. {database.message}"),
            (synapse.state != "running", "SynapseCrashed", f"Synapse is being started again. {synapse.message}"),
            (not self.answered, "Starting", "Synapse is starting and does not answer yet."),
            (bool(self._watch.trouble()[0]), *self._watch.trouble()),
        )
        if not self.unit.wanted:
            return False, "", ""
        for holds, reason, message in causes:
            if holds:
                return False, reason, message.strip()
        return True, "", ""

    def _check_restored(self) -> None:
        """Raise where an instance has nothing whole yet: PostgreSQL would take a half for all there is."""
        if self.unit.instance_of and not self.recovery.restored:
            raise ProviderError(
                "What is brought back here is not whole yet, so it can't be started. Nothing was lost. Wait for the "
                "restore, or start it again.",
                code="NotRestored",
                retry=self.recovery.running,
            )

    async def _environment(self, progress: Progress) -> None:
        cache = self.machine.state / "cache" / "uv"
        try:
            await environments.ensure(self.machine.environments, self.unit.version, progress=progress, cache=cache)
        except ProviderError as error:
            self.blocker = error
            raise
        self.blocker = None

    async def _database(self, spec: ServerSpec) -> bool:
        password = self.unit.superuser_password
        return await ensure_database(self.folder.data, self.folder.sockets, password, spec.secrets["database"])

    async def _before_postgres(self) -> None:
        self.folder.make()
        postgres.clear_stale_lock(self.folder.data)

    def _synapse_unit(self) -> Unit:
        command = self.folder.synapse_command(self.version, PREWARM_SECONDS)
        return Unit(command, on_exit=self._synapse_ended, before_start=self._before_synapse)

    async def _before_synapse(self) -> None:
        self.answered = False
        self.folder.go.unlink(missing_ok=True)
        if self._released:
            self.folder.make()
            self._check()
            self._released = self.folder.digest()
            self.folder.go.touch(mode=0o644)

    async def _release(self) -> None:
        """Let a warm Synapse go on. It was started without the checks, so they come now."""
        try:
            self._check()
        except (Refused, PortTaken):
            await self.synapse.stop()  # and let the usual start refuse it, where the reason is kept
            return
        self.folder.go.touch(mode=0o644)

    def _check(self) -> None:
        self.folder.check_key()
        taken = next((port for port in (self.unit.port, self.unit.metrics_port) if not port_free(port)), None)
        self._port_taken = taken is not None
        if taken is not None:
            raise PortTaken(
                f"Port {taken} is taken by another program. Its data is safe. It starts when that has ended."
            )

    async def _prewarm(self, version: str) -> None:
        """Start importing Synapse while the database is being made. It ends by itself if no start follows."""
        whole = environments.environment_python(self.machine.environments, version).exists()
        if self._released or self.synapse.state != "stopped" or not whole:
            return
        if self.version != version:
            self.version = version
            self.synapse = self._synapse_unit()
        await self.synapse.start()
        self._warm_end = asyncio.get_running_loop().call_later(PREWARM_SECONDS - 5, self._end_warm)

    def _end_warm(self) -> None:
        self._warm_stop = asyncio.create_task(self._stop_warm())

    async def _stop_warm(self) -> None:
        async with self.lock:
            if not self._released:
                await self._stop_synapse()

    def _cool(self) -> None:
        if self._warm_end is not None:
            self._warm_end.cancel()
            self._warm_end = None

    async def _stop_synapse(self) -> None:
        self._cool()
        self._watch.stop()
        await self.synapse.stop()
        self._released, self.answered, self._port_taken = "", False, False
        self.folder.go.unlink(missing_ok=True)

    async def answers(self) -> bool:
        """Tell whether our own Synapse answers now."""
        # Only while ours runs: on a port that was taken, somebody else would answer.
        return self.synapse.state == "running" and await probe.answers(self.unit.port)

    def _synapse_ended(self, code: int) -> None:
        self.answered = False
        if self._released:  # a warm one ends when nobody wants it
            self._count(code)

    def _count(self, _code: int) -> None:
        self.unit.crashes += 1
        # A full disk must not keep it from being started again; the number is written with the next change.
        with contextlib.suppress(OSError):
            self.folder.save()

    def _give_up(self, crashes: int, *, late: bool) -> None:
        """Raise if waiting for the first answer has no sense any more."""
        _, reason, message = self.state()
        hopeless = reason in ("SigningKeyMismatch", "PortTaken") or self.unit.crashes - crashes >= TRIES
        if not (late or hopeless):
            return
        log = {"SynapseCrashed": "synapse", "Starting": "synapse", "DatabaseDown": "postgres"}.get(reason)
        tail = self.folder.log_tail(log) if log else ""
        raise ProviderError(
            f"{message or 'The server did not answer in time.'}{tail}",
            code=reason or "Starting",
            retry=reason != "SigningKeyMismatch",
        )
