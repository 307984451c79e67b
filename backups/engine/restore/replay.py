"""A private PostgreSQL over fetched data: replays to the wanted moment, and lets the database be settled. No Django.

It has no TCP port, a socket in a folder of its own, and settings of its own: the data's own files stay as they were
backed up, so whoever runs the server afterwards finds what was there. Nothing is synced while it works; the whole
file system is, at the end.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from backups.engine.database import lsn
from backups.engine.restore.disk import owner_of
from backups.engine.restore.errors import Cancelled, RestoreError
from backups.engine.restore.folder import Reached
from backups.engine.restore.supply import Supply
from backups.engine.settings import Tools
from provisioning.providers.local.processes import Command, describe_exit, spawn_argv

SILENCE = 300.0
"""Seconds without any sign that replay goes on."""
_TURN = 0.1
_KEPT = 200
_READY = "database system is ready to accept connections"
_SHORT = "recovery ended before configured recovery target was reached"
_STOPPED = re.compile(r"recovery stopping (?:before|after) (?:commit|abort) of transaction \d+, time (.+)")
_LAST = re.compile(r"last completed transaction was at log time (.+)")
_PROGRESS = re.compile(r"current LSN: ([0-9A-F]+/[0-9A-F]+)")
_SIGNAL = "recovery.signal"


class TooShort(Exception):
    """There is no commit after the wanted moment."""


class Server:
    """One private PostgreSQL. Use it as a context manager."""

    def __init__(self, data: Path, work: Path, tools: Tools, stop: threading.Event) -> None:
        self.data = data
        self.sockets = Path()
        self.lines: list[str] = []
        self._work = work
        self._tools = tools
        self._stop = stop
        self._process: subprocess.Popen[bytes] | None = None
        self._reader: threading.Thread | None = None
        self._heard = time.monotonic()
        self._told = threading.Event()
        """Set by whatever it says, and by its end."""

    @contextlib.contextmanager
    def running(self, sockets: Path, supply: Supply | None, options: dict[str, str]) -> Iterator[Server]:
        """Start it, give it, and end it however this ends. Raises `RestoreError`."""
        self.sockets = sockets
        self.lines = []
        self._start(supply, options)
        try:
            yield self
        finally:
            self._kill()

    def await_ready(self, supply: Supply | None) -> Reached:
        """Wait until it takes connections. Raises `TooShort`, `RestoreError`, and what failed the supply."""
        assert self._process is not None  # noqa: S101 (for the type checker: it was started)
        while not any(_READY in line for line in self.lines):
            if self._stop.is_set():
                raise Cancelled
            if supply is not None and supply.failure is not None:
                raise supply.failure
            if self._process.poll() is not None:
                self._join()
                if supply is not None and supply.failure is not None:
                    raise supply.failure
                raise self._ended()
            quiet = min(time.monotonic() - self._heard, supply.silent if supply else float("inf"))
            if quiet > SILENCE:
                raise RestoreError(
                    f"PostgreSQL has not gone on for {SILENCE:.0f} seconds{self._said()}. What was fetched stays.",
                    code="ReplayStuck",
                    retry=True,
                )
            self._told.wait(_TURN)
            self._told.clear()
        return self._reached()

    def end(self) -> None:
        """End it with a checkpoint. Raises `RestoreError`."""
        assert self._process is not None  # noqa: S101 (for the type checker: it was started)
        self._process.send_signal(signal.SIGINT)
        while self._process.poll() is None:
            if self._stop.is_set():
                raise Cancelled
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_TURN)
        self._join()
        if self._process.returncode != 0:
            raise self._ended()

    def _start(self, supply: Supply | None, options: dict[str, str]) -> None:
        hba, empty = self._work / "pg_hba.conf", self._work / "postgresql.conf"
        hba.write_text("local all all trust\n", encoding="ascii")
        empty.write_text("", encoding="ascii")
        for path in (hba, empty):
            path.chmod(0o644)
        # As options they go over whatever the data's own files say.
        values = _SETTINGS | {
            "config_file": str(empty),
            "hba_file": str(hba),
            "ident_file": str(empty),
            "unix_socket_directories": str(self.sockets),
            **({"restore_command": supply.command} if supply else {}),
            **options,
        }
        words = ("-D", str(self.data), *(f"--{key}={value}" for key, value in values.items()))
        command = command_of("postgres", words, self._tools, death=signal.SIGQUIT)
        self._heard = time.monotonic()
        self._process = subprocess.Popen(
            spawn_argv(command),
            cwd=command.cwd,
            env=dict(command.env),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, args=(self._process,), daemon=True)
        self._reader.start()

    def _read(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stderr is not None  # noqa: S101 (for the type checker: it is a pipe)
        with contextlib.suppress(ValueError, OSError):
            for line in process.stderr:
                self._heard = time.monotonic()
                self.lines.append(line.decode(errors="replace").rstrip())
                del self.lines[1:-_KEPT]
                self._told.set()
        self._told.set()

    def _join(self) -> None:
        if self._reader is not None:
            self._reader.join(5)

    def _kill(self) -> None:
        """End it at once if it runs still: its data are then as after a crash, and replay goes on from there."""
        process = self._process
        if process is None:
            return
        if process.poll() is None:
            process.send_signal(signal.SIGQUIT)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        self._join()
        if process.stderr is not None:
            process.stderr.close()
        self._process = None

    def _ended(self) -> Exception:
        assert self._process is not None  # noqa: S101 (for the type checker: it was started)
        text = " ".join(self.lines)
        if _SHORT in text:
            return TooShort()
        if "No space left on device" in text:
            return RestoreError(
                f"The disk of {self.data} is full. What was fetched stays. Make room and start the restore again.",
                code="DiskFull",
                retry=True,
            )
        return RestoreError(
            f"PostgreSQL could not replay what was backed up ({describe_exit(self._process.returncode)})"
            f"{self._said()}. Nothing that ran before was touched. Take another restore point.",
            code="ReplayFailed",
        )

    def _said(self) -> str:
        told = [line for line in self.lines if re.search("FATAL|PANIC|ERROR", line)] or self.lines
        return f"; it said: {' | '.join(told[-3:])}" if told else ""

    def _reached(self) -> Reached:
        found = Reached()
        for line in self.lines:
            if _STOPPED.search(line):
                found.stopped = True
            if match := _LAST.search(line):
                found.last = match[1]
        with contextlib.suppress(OSError, ValueError):
            found.end = branch(self.data)
        return found

    def place(self) -> int:
        """Return how far replay said that it is; 0 where it said nothing yet."""
        found = [match[1] for line in self.lines if (match := _PROGRESS.search(line))]
        return lsn.number(found[-1]) if found else 0


def recovery(to: datetime | None, *, at_point: bool) -> dict[str, str]:
    """Return the settings of a recovery: to a moment, to where the base backup is consistent, or to the end."""
    found = {"recovery_target_timeline": "latest", "recovery_target_action": "promote"}
    if at_point:
        return found | {"recovery_target": "immediate"}
    if to is not None:
        found["recovery_target_time"] = to.astimezone(UTC).isoformat(sep=" ", timespec="microseconds")
        found["recovery_target_inclusive"] = "on"
    return found


def mark_for_recovery(data: Path, owner: tuple[int, int] | None) -> None:
    """Let the next start be a recovery. Raises `OSError`."""
    handle = os.open(data / _SIGNAL, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        if owner is not None:
            os.fchown(handle, *owner)
    finally:
        os.close(handle)


def is_recovering(data: Path) -> bool:
    """Return whether a recovery that was begun is not over."""
    return (data / _SIGNAL).exists()


def branch(data: Path) -> int:
    """Return the LSN at which the newest timeline of these data begins. Raises `OSError`, `ValueError`."""
    newest = max((data / "pg_wal").glob("????????.history"))
    return max(lsn.switches(newest.read_text(encoding="utf-8", errors="replace")).values())


def version(tools: Tools) -> int:
    """Return PostgreSQL's version as `server_version_num` says it, such as 180004. Raises `RestoreError`."""
    command = command_of("postgres", ("--version",), tools)
    try:
        done = subprocess.run(
            spawn_argv(command), cwd="/", env=dict(command.env), capture_output=True, text=True, check=False, timeout=60
        )
        found = re.search(r"\(PostgreSQL\) (\d+)\.(\d+)", done.stdout)
    except (OSError, subprocess.TimeoutExpired):
        found = None
    if found is None:
        raise RestoreError(
            f"PostgreSQL's programs can't be run from {tools.programs or 'PATH'}. Nothing was started.",
            code="WrongVersion",
        )
    return int(found[1]) * 10000 + int(found[2])


def command_of(name: str, words: tuple[str, ...], tools: Tools, *, death: int = signal.SIGKILL) -> Command:
    """Return the command of one of PostgreSQL's programs, as the user who owns the database."""
    program = str(Path(tools.programs) / name) if tools.programs else shutil.which(name) or name
    environment = {"LC_ALL": "C", "TZ": "UTC", "PATH": os.defpath}
    uid, gid = owner_of(tools) or (None, None)
    return Command(
        name,
        (program, *words),
        Path("/"),
        environment,
        uid=uid,
        gid=gid,
        capabilities=tools.capabilities,
        death_signal=death,
    )


_SETTINGS = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "shared_buffers": "256MB",
    "max_connections": "10",
    "max_wal_senders": "0",
    "wal_level": "replica",
    "archive_mode": "off",
    "hot_standby": "off",  # else it would refuse to have smaller limits than the server that was backed up
    "max_prepared_transactions": "100",
    "max_wal_size": "2GB",
    "checkpoint_timeout": "1h",
    "fsync": "off",
    "full_page_writes": "off",
    "recovery_init_sync_method": "syncfs",
    "autovacuum": "off",
    "jit": "off",
    "ssl": "off",
    "shared_preload_libraries": "",
    "session_preload_libraries": "",
    "local_preload_libraries": "",
    "archive_cleanup_command": "",
    "recovery_end_command": "",
    "primary_conninfo": "",
    "huge_pages": "off",
    "restart_after_crash": "off",
    "logging_collector": "off",
    "log_destination": "stderr",
    "log_line_prefix": "",
    "log_min_messages": "info",
    "log_startup_progress_interval": "2s",
    "lc_messages": "C",
    "timezone": "UTC",
    "log_timezone": "UTC",
}
