"""One homeserver on this machine: its folder, its PostgreSQL, its Synapse."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import shutil
import time
from pathlib import Path

from psycopg import sql

from provisioning.providers.base import Progress, ProviderError, ServerSpec
from provisioning.providers.local import configuration, environments, postgres
from provisioning.providers.local.agent import probe
from provisioning.providers.local.agent.files import REMOVED, UnitFile, sync_folder, write
from provisioning.providers.local.agent.machine import LAUNCHER, Machine, port_free
from provisioning.providers.local.configuration import Places
from provisioning.providers.local.keys import KeyUnreadable, verify_key
from provisioning.providers.local.processes import Command, Refused, Unit

SUPERUSER = "postgres"
START_SECONDS = 120.0
PREWARM_SECONDS = 90.0
TRIES = 3
"""Crashes in one start after which the caller is told; the agent itself goes on trying."""


class PortTaken(Exception):
    """Somebody else listens on a port that is this server's."""


class ManagedServer:
    """Brings one server to what its unit file says. The caller holds `lock` around each method that changes something."""

    def __init__(self, machine: Machine, unit: UnitFile) -> None:
        self.machine = machine
        self.unit = unit
        self.lock = asyncio.Lock()
        self.folder = machine.servers / unit.server_id
        self.sockets = machine.runtime / unit.server_id
        self.go = self.sockets.with_suffix(".go")
        self.blocker: ProviderError | None = None
        """Why it could not even be tried to start it."""
        self.answered = False
        self.port_taken = False
        self._released = ""
        """Digest of what Synapse was started with; empty while it is only warm."""
        self._synapse_version = ""
        self._warm_end: asyncio.TimerHandle | None = None
        self._watch: asyncio.Task[None] | None = None
        self.postgres = Unit(self._postgres_command(), on_exit=self._count, before_start=self._before_postgres)
        self.synapse = self._synapse_unit(unit.version)

    # --- what the verbs do ---------------------------------------------------------------------------------------

    async def ensure_storage(self, spec: ServerSpec, progress: Progress) -> None:
        """Make folders, database cluster, role and database; all of them may be there already."""
        self.make_folders()
        await self._prewarm(spec.version)
        data = self.folder / "postgres"
        if not (data / "PG_VERSION").exists():
            progress("Making a PostgreSQL cluster of its own.")
            await postgres.initdb(
                data,
                superuser=SUPERUSER,
                password=self.unit.superuser_password,
                uid=self.unit.uid,
                gid=self.unit.gid,
                capabilities=self.machine.capabilities,
                # Not below the server's own folder: initdb runs as a user who may not pass it.
                staging=self.machine.servers / f".new-{self.unit.server_id}",
            )
        await self.postgres.start()
        await self._database(spec.secrets["database"], progress)

    async def configure(self, spec: ServerSpec, progress: Progress) -> None:
        """Write configuration and secrets; the signing key only once, afterwards it is compared."""
        self.make_folders()
        self._signing_key(spec.secrets["signing_key"])
        places = self.places
        text = configuration.render(configuration.homeserver(spec, places))
        self._write("log.yaml", configuration.render(configuration.log_config(places)))
        if self._write("homeserver.yaml", text):
            progress("Wrote the configuration.")
        self.unit.version, self.unit.suspended, self.unit.configured = spec.version, spec.suspended, True
        self.unit.save(self.folder)

    async def start(self, progress: Progress) -> str:
        """Let it run with what is configured, and return its address once it answers."""
        if not self.unit.configured:
            raise ProviderError("The server has no configuration yet. Retry from the first step.", code="NotConfigured")
        self.unit.wanted = True
        self.unit.save(self.folder)
        await self.bring_up(progress)
        crashes, end = self.crashes, time.monotonic() + START_SECONDS
        while not await probe.answers(self.unit.port):
            self._give_up(crashes, late=time.monotonic() > end)
            await asyncio.sleep(0.01)
        self.answered = True
        progress(f"Synapse {self.unit.version} answers at {self.places.url}.")
        return self.places.url

    async def bring_up(self, progress: Progress) -> None:
        """Start both processes, or Synapse again if it runs with something else than what is written now."""
        place = self.machine.environments
        cache = self.machine.state / "cache" / "uv"
        try:
            await environments.ensure(place, self.unit.version, progress=progress, cache=cache)
        except ProviderError as error:
            self.blocker = error
            raise
        self.blocker = None
        self.make_folders()
        if self._released and (self._released != self._digest() or self.synapse.state == "refused"):
            progress("Starting Synapse again with what was changed.")
            await self._stop_synapse()
        if self._synapse_version != self.unit.version:
            await self._stop_synapse()
            self.synapse = self._synapse_unit(self.unit.version)
        self._cool()
        self._released = self._digest()
        if self.synapse.state == "running" and not self.go.exists():
            await self._release()
        await asyncio.gather(self.postgres.start(), self.synapse.start())
        if self._watch is None or self._watch.done():
            self._watch = asyncio.create_task(self._watch_answers())

    async def stop(self) -> None:
        """Stop Synapse, then its database."""
        await self._stop_synapse()
        await self.postgres.stop()

    async def remove(self) -> None:
        """Stop it and remove every trace of it."""
        await self.stop()
        gone = self.folder.with_name(REMOVED + self.unit.server_id)
        if self.folder.exists():
            self.folder.rename(gone)  # from here on it is no server any more, however far the removal gets
            sync_folder(gone.parent)
        await asyncio.to_thread(shutil.rmtree, gone, ignore_errors=True)
        await asyncio.to_thread(shutil.rmtree, self.sockets, ignore_errors=True)
        self.go.unlink(missing_ok=True)

    # --- what pages ask ------------------------------------------------------------------------------------------

    @property
    def crashes(self) -> int:
        """Ends of a process that nobody asked for, since the server was made."""
        return self.unit.crashes

    @property
    def pids(self) -> tuple[int, ...]:
        """The processes that run now."""
        return tuple(pid for pid in (self.postgres.pid, self.synapse.pid) if pid is not None)

    def state(self) -> tuple[bool, str, str]:
        """Return whether it runs and answers, and else a named reason with a sentence (both empty if it need not run)."""
        if not self.unit.wanted:
            return False, "", ""
        if self.blocker is not None:
            return False, self.blocker.code, str(self.blocker)
        if self.synapse.state == "refused":
            return False, self.synapse.reason, self.synapse.message
        if self.port_taken:
            return False, "PortTaken", self.synapse.message
        if self.postgres.state != "running":
            return (
                False,
                "DatabaseDown",
                f"Its PostgreSQL is down and is being started again. {self.postgres.message}".strip(),
            )
        if self.synapse.state != "running":
            return False, "SynapseCrashed", f"Synapse is being started again. {self.synapse.message}".strip()
        if not self.answered:
            return False, "Starting", "Synapse is starting and does not answer yet."
        return True, "", ""

    @property
    def places(self) -> Places:
        """Where its things lie."""
        return Places(
            port=self.unit.port,
            metrics_port=self.unit.metrics_port,
            socket_dir=self.sockets,
            signing_key=self.folder / "config" / "signing.key",
            media=self.folder / "media",
            log_config=self.folder / "config" / "log.yaml",
            log=self.folder / "work" / "homeserver.log",
        )

    # --- folders and files ---------------------------------------------------------------------------------------

    def make_folders(self) -> None:
        """Make what is missing. The server's user may pass its folder and owns what Synapse and PostgreSQL write.

        Configuration and key are root's: a homeserver that was broken into can't change them. So are the logs that the
        agent writes, since following a link laid there would let it write anywhere.
        """
        uid, gid = self.unit.uid, self.unit.gid
        for path, mode, user in (
            (self.folder, 0o710, -1),
            (self.folder / "config", 0o750, -1),
            (self.folder / "logs", 0o700, -1),
            (self.folder / "media", 0o700, uid),
            (self.folder / "work", 0o700, uid),
            (self.sockets, 0o700, uid),
        ):
            path.mkdir(mode=0o700, exist_ok=True)
            if uid is not None and gid is not None:
                os.chown(path, uid if user == uid else 0, gid)
            path.chmod(mode)

    def _write(self, name: str, text: str) -> bool:
        """Write a file under config/ for Synapse to read; False if it says that already."""
        path = self.folder / "config" / name
        with contextlib.suppress(FileNotFoundError):
            if path.read_text(encoding="utf-8") == text:
                return False
        write(path, text, mode=0o640, gid=self.unit.gid)
        return True

    def _signing_key(self, line: str) -> None:
        """Write the signing key at the first time, and never another one."""
        key_id, public = verify_key(line)
        if self.unit.key_id and (key_id, public) != (self.unit.key_id, self.unit.public_key):
            raise ProviderError(
                f"Hearth wants to give the server the signing key {key_id}, but it was made with {self.unit.key_id}. "
                "Other servers would no longer trust it, so nothing was changed. Staff must find the right key.",
                code="SigningKeyMismatch",
                retry=False,
            )
        if not self.places.signing_key.exists():
            self._write("signing.key", line.strip() + "\n")
        self.unit.key_id, self.unit.public_key = key_id, public
        self._check_key()

    def _check_key(self) -> None:
        """Raise unless the key in the folder is the server's: Synapse would silently make a new one, a new identity."""
        try:
            found = verify_key(self.places.signing_key.read_text(encoding="utf-8"))
        except (OSError, KeyUnreadable, UnicodeDecodeError):
            found = ("none", "")
        if found == (self.unit.key_id, self.unit.public_key):
            return
        raise Refused(
            "SigningKeyMismatch",
            f"The signing key in the server's folder is {found[0]}, not the {self.unit.key_id} that it was made with. "
            "Synapse was not started: with another key, other servers would stop trusting it. Its data is safe. "
            "Staff must put the right key back and restart the server.",
        )

    def _digest(self) -> str:
        text = (self.folder / "config" / "homeserver.yaml").read_bytes()
        return f"{self.unit.version} {hashlib.sha256(text).hexdigest()}"

    # --- PostgreSQL ----------------------------------------------------------------------------------------------

    def _postgres_command(self) -> Command:
        return postgres.server_command(
            self.folder / "postgres",
            self.sockets,
            name=f"postgres of {self.unit.server_name}",
            uid=self.unit.uid,
            gid=self.unit.gid,
            log=self.folder / "logs" / "postgres.log",
            capabilities=self.machine.capabilities,
        )

    async def _before_postgres(self) -> None:
        self.make_folders()  # /tmp may have been swept
        postgres.clear_stale_lock(self.folder / "postgres")

    async def _database(self, password: str, progress: Progress) -> None:
        connection = await postgres.connect(self.sockets, user=SUPERUSER, password=self.unit.superuser_password)
        role, name = sql.Identifier(configuration.ROLE), sql.Identifier(configuration.DATABASE)
        async with connection:
            cursor = await connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [configuration.ROLE])
            verb = "ALTER" if await cursor.fetchone() else "CREATE"
            words = sql.SQL("{} ROLE {} LOGIN PASSWORD {}").format(sql.SQL(verb), role, sql.Literal(password))
            await connection.execute(words)
            cursor = await connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [configuration.DATABASE])
            if await cursor.fetchone():
                return
            # From template0: the cluster's own UTF8 and locale C, with nothing that template1 may have got.
            await connection.execute(sql.SQL("CREATE DATABASE {} OWNER {} TEMPLATE template0").format(name, role))
        progress("PostgreSQL runs with an empty database.")

    # --- Synapse -------------------------------------------------------------------------------------------------

    def _synapse_unit(self, version: str) -> Unit:
        self._synapse_version = version
        python = environments.python_of(self.machine.environments, version)
        config = self.folder / "config" / "homeserver.yaml"
        argv = (str(python), "-I", str(LAUNCHER), str(config), str(self.go), str(PREWARM_SECONDS))
        command = Command(
            f"synapse of {self.unit.server_name}",
            argv,
            self.folder / "work",
            {
                "PATH": os.defpath,
                "LC_ALL": "C.UTF-8",
                "TZ": "UTC",
                "MALLOC_ARENA_MAX": "2",
                "HOME": str(self.folder / "work"),
            },
            log=self.folder / "logs" / "synapse.log",
            uid=self.unit.uid,
            gid=self.unit.gid,
            stop_timeout=8.0,
            capabilities=self.machine.capabilities,
        )
        return Unit(command, on_exit=self._synapse_ended, before_start=self._before_synapse)

    async def _before_synapse(self) -> None:
        self.answered = False
        self.go.unlink(missing_ok=True)
        if self._released:
            self.make_folders()
            self._check_key()
            self._check_ports()
            self._released = self._digest()
            self.go.touch(mode=0o644)

    async def _release(self) -> None:
        """Let a warm Synapse go on; it was started without the checks, so they come now."""
        try:
            self._check_key()
            self._check_ports()
        except (Refused, PortTaken):
            await self.synapse.stop()  # and let the usual start refuse it, where the reason is kept
            return
        self.go.touch(mode=0o644)

    def _check_ports(self) -> None:
        taken = next((port for port in (self.unit.port, self.unit.metrics_port) if not port_free(port)), None)
        self.port_taken = taken is not None
        if taken is not None:
            raise PortTaken(
                f"Port {taken} of this server is taken by another program. Its data is safe. "
                "It starts by itself when the port is free."
            )

    async def _prewarm(self, version: str) -> None:
        """Start importing Synapse while the database is being made. It ends by itself if no start follows."""
        whole = environments.python_of(self.machine.environments, version).exists()
        if self._released or self.synapse.state == "running" or self._warm_end is not None or not whole:
            return
        if self._synapse_version != version:
            self.synapse = self._synapse_unit(version)
        await self.synapse.start()
        loop = asyncio.get_running_loop()
        self._warm_end = loop.call_later(PREWARM_SECONDS - 5, lambda: loop.create_task(self._stop_warm()))

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
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        self._released, self.answered, self.port_taken = "", False, False
        await self.synapse.stop()
        self.go.unlink(missing_ok=True)

    async def _watch_answers(self) -> None:
        """Notice the first answer after each start."""
        while True:
            if self.synapse.state == "running" and not self.answered:
                self.answered = await probe.answers(self.unit.port)
            await asyncio.sleep(0.1 if not self.answered else 0.5)

    def _synapse_ended(self, code: int) -> None:
        self.answered = False
        if self._released:
            self._count(code)

    def _count(self, _code: int) -> None:
        self.unit.crashes += 1
        # A full disk must not keep it from being started again; the number is written with the next change.
        with contextlib.suppress(OSError):
            self.unit.save(self.folder)

    def _give_up(self, crashes: int, *, late: bool) -> None:
        """Raise if waiting for the first answer has no sense any more."""
        running, reason, message = self.state()
        if running or not (
            late or reason == "SigningKeyMismatch" or reason == "PortTaken" or self.crashes - crashes >= TRIES
        ):
            return
        tail = self.log_tail() if reason in ("SynapseCrashed", "DatabaseDown", "Starting") else ""
        raise ProviderError(
            f"{message or 'The server did not answer in time.'}{tail}",
            code=reason or "Starting",
            retry=reason != "SigningKeyMismatch",
        )

    def log_tail(self, lines: int = 6) -> str:
        """Return the last lines that Synapse wrote on its standard error, for a message."""
        with contextlib.suppress(OSError):
            text = Path(self.folder / "logs" / "synapse.log").read_text(encoding="utf-8", errors="replace")
            return " Its last lines:\n" + "\n".join(text.splitlines()[-lines:])
        return ""
