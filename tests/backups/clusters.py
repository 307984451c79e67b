"""Real PostgreSQL clusters for the engine's tests: one to back up, and those that are brought back from its backups."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import psycopg

from provisioning.providers.local.postgres import BIN, environment, give
from provisioning.providers.local.processes import Command, passage, spawn_argv

NOBODY = 65534 if os.geteuid() == 0 else None
"""PostgreSQL refuses to be root."""
CAPABILITIES = passage(BIN / "postgres")
ROLE = Path(__file__).parents[2] / "provisioning" / "providers" / "local" / "agent" / "backup.sql"
SETTINGS = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    # A kill -9 loses nothing that was written; only a power cut would.
    "fsync": "off",
    "shared_buffers": "16MB",
    "max_connections": "40",
    "max_wal_size": "128MB",
    "wal_keep_size": "0",
    "io_method": "sync",
}


class Cluster:
    """One PostgreSQL in `folder`, on a unix socket there. `folder` is a short path that everybody may pass."""

    def __init__(self, folder: Path, settings: Mapping[str, str] | None = None) -> None:
        self.folder = folder
        self.data = folder / "data"
        self.settings = {**SETTINGS, "unix_socket_directories": str(folder), **(settings or {})}
        self.process: subprocess.Popen[bytes] | None = None
        folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        self.own(folder)

    def own(self, path: Path) -> None:
        """Make it the database user's."""
        if NOBODY is not None:
            give(path, NOBODY, NOBODY)

    def make(self, template: Path | None = None) -> Cluster:
        """Make the cluster, or take a copy of one, and start it, with the role that backups need."""
        if template is not None:
            run(self.folder, "/bin/cp", "-a", str(template), str(self.data))
            self.start()
            return self
        words = ("-D", str(self.data), "-U", "postgres", "-A", "trust", "--no-sync", "--locale=C", "--encoding=UTF8")
        run(self.folder, "initdb", *words)
        self.start()
        run(self.folder, "psql", *self.where, "-X", "-q", "-f", str(ROLE), BACKUP_PASSWORD="secret")
        return self

    @property
    def where(self) -> tuple[str, ...]:
        """Options of PostgreSQL's programs."""
        return ("-h", str(self.folder), "-U", "postgres", "-d", "postgres")

    def start(self, *, wait: bool = True) -> None:
        """Start it; with `wait` until it takes connections that may write."""
        options = [f"--{key}={value}" for key, value in self.settings.items()]
        command = _command(self.folder, "postgres", "-D", str(self.data), *options, death=signal.SIGQUIT)
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(spawn_argv(command), env=dict(command.env), stderr=log, cwd="/")
        end = time.monotonic() + 60
        while wait:
            with contextlib.suppress(psycopg.OperationalError):
                if not self.value("SELECT pg_is_in_recovery()"):
                    return
            assert self.process.poll() is None, self.log()
            assert time.monotonic() < end, self.log()
            time.sleep(0.05)

    def log(self) -> str:
        """What it wrote last."""
        return (self.folder / "log").read_text(errors="replace")[-3000:]

    def kill(self) -> None:
        """Kill all of it at once, as a crash does."""
        assert self.process is not None
        pid = self.process.pid
        # One that it makes between our look and its end would keep the shared memory, and a new start would fail.
        self.process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        backends = [int(line) for line in _children(pid)]
        self.process.kill()
        self.process.wait(60)
        for each in backends:
            with contextlib.suppress(ProcessLookupError):
                os.kill(each, signal.SIGKILL)
        end = time.monotonic() + 60
        while any(_lives(each) for each in backends):  # their shared memory stops a new start
            assert time.monotonic() < end, self.log()
            time.sleep(0.02)

    def stop(self) -> None:
        """Stop it, however it is."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                self.kill()

    def connect(self) -> psycopg.Connection[tuple[Any, ...]]:
        """Sign in as the superuser."""
        return psycopg.connect(host=str(self.folder), user="postgres", dbname="postgres", autocommit=True)

    def value(self, query: str, *values: object) -> Any:
        """Return the one value of a query."""
        with self.connect() as connection:
            found = connection.execute(query.encode(), values or None)
            return (found.fetchone() or [None])[0] if found.description else None


@contextlib.contextmanager
def cluster(folder: Path, settings: Mapping[str, str] | None = None) -> Iterator[Cluster]:
    """Give a new running cluster, gone afterwards."""
    found = Cluster(folder, settings)
    try:
        yield found.make()
    finally:
        found.stop()
        shutil.rmtree(folder, ignore_errors=True)


def run(folder: Path, name: str, *words: str, **variables: str) -> str:
    """Run one of PostgreSQL's programs as the database's user and return what it prints."""
    command = _command(folder, name, *words)
    done = subprocess.run(
        spawn_argv(command), env={**command.env, **variables}, cwd="/", capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def _command(folder: Path, name: str, *words: str, death: int = signal.SIGKILL) -> Command:
    return Command(
        name,
        (str(BIN / name), *words),
        folder,
        environment(),
        uid=NOBODY,
        gid=NOBODY,
        capabilities=CAPABILITIES,
        death_signal=death,
    )


def _lives(pid: int) -> bool:
    with contextlib.suppress(OSError, psutil.Error):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def _children(pid: int) -> list[str]:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return []
