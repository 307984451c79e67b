"""A base backup: pg_basebackup's tar through zstd and encryption into the store, without touching the disk.

It is one object, which exists only when pg_basebackup has ended well; cut off, it is begun anew.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import subprocess
import threading
from collections.abc import Generator, Iterator
from dataclasses import dataclass

import msgspec
import zstandard

from backups.engine import names
from backups.engine.database import lsn
from backups.engine.database.postgres import Postgres, tool
from backups.engine.database.spool import finish
from backups.engine.database.tar import TarError, Watcher
from backups.engine.manifest import Ref
from backups.engine.objects import DATABASE, Vault
from backups.engine.settings import Policy, Tools
from provisioning.providers.local.processes import Command, describe_exit, spawn_argv
from security.streams import DataKey

PIECE = 1 << 20
_RANGES = re.compile(rb'"WAL-Ranges"\s*:\s*(\[.*?\])', re.DOTALL)
_LAST = 4096
"""Bytes of its standard error that are kept for the reason of a failure."""


class BaseError(Exception):
    """There is no base backup. The text is for a person."""

    code = "BaseFailed"


class CancelledError(BaseError):
    """Somebody wanted it to end."""


class Range(msgspec.Struct, rename={"timeline": "Timeline", "begin": "Start-LSN", "end": "End-LSN"}):
    """What a backup needs of one timeline, as its manifest says."""

    timeline: int
    begin: str
    end: str


@dataclass(frozen=True)
class Base:
    """A base backup that is stored."""

    ref: Ref
    timeline: int
    begin: int
    end: int
    bytes: int
    """Of the tar, before compression."""


class Taker:
    """Takes base backups, one at a time. `cancel` may be called by any thread."""

    def __init__(self, postgres: Postgres, tools: Tools, vault: Vault) -> None:
        self._postgres = postgres
        self._tools = tools
        self._vault = vault
        self._process: subprocess.Popen[bytes] | None = None
        self._cancelled = threading.Event()
        self.passed = 0
        """Bytes of the tar so far."""

    def cancel(self) -> None:
        """End the one that runs, and let no other begin."""
        self._cancelled.set()
        if (process := self._process) is not None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()

    def take(self, point: str, key: DataKey, policy: Policy) -> Base:
        """Store the base backup of a restore point. Raises `BaseError`, `StoreError`."""
        watcher = Watcher()
        pieces = self._stream(watcher, self._command(point, policy), policy.compression)
        with contextlib.closing(pieces):
            ref = self._vault.put(names.base(point), pieces, key, DATABASE, point)
        found = _range(watcher.finish())
        return Base(ref, found.timeline, lsn.number(found.begin), lsn.number(found.end), watcher.total)

    def _stream(self, watcher: Watcher, command: Command, level: int) -> Generator[bytes, None, None]:
        """Yield the compressed tar; raise at its end unless it is whole, so that nothing is kept of it."""
        chunker = zstandard.ZstdCompressor(level=level).chunker(chunk_size=PIECE)
        for piece in self._tar(command):
            watcher.take(piece)
            self.passed = watcher.total
            yield from chunker.compress(piece)
        _range(watcher.finish())
        yield from finish(chunker)

    def _tar(self, command: Command) -> Iterator[bytes]:
        if self._cancelled.is_set():
            raise CancelledError("The base backup was cancelled.")
        with subprocess.Popen(
            spawn_argv(command),
            cwd=command.cwd,
            env=dict(command.env),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        ) as process:
            self._process = process
            said = _Said(process)
            try:
                assert process.stdout is not None  # noqa: S101 (for the type checker: it is a pipe)
                with contextlib.suppress(OSError):  # the system's limit may be lower
                    fcntl.fcntl(process.stdout, fcntl.F_SETPIPE_SZ, PIECE)
                while piece := process.stdout.read(PIECE):
                    yield piece
                code = process.wait()
            finally:
                process.kill()
                self._process = None
        if self._cancelled.is_set():
            raise CancelledError("The base backup was cancelled.")
        if code != 0:
            raise BaseError(
                f"pg_basebackup ended before the base backup was whole ({describe_exit(code)}): {said.text()} "
                "Nothing of it was kept; it is begun anew."
            )

    def _command(self, point: str, policy: Policy) -> Command:
        words: tuple[str, ...] = (
            "-D",
            "-",
            "-Ft",
            "-X",
            "none",
            "--checkpoint=fast",
            "--label",
            f"hearth {point}",
            "-w",
        )
        if policy.base_rate_kb:
            words += ("--max-rate", str(max(policy.base_rate_kb, 32)))
        it = self._tools
        identity = {"uid": it.uid, "gid": it.gid, "capabilities": it.capabilities, "oom_score": 300}
        return tool("pg_basebackup", (*words, "--no-slot"), self._postgres, it.programs, **identity)


class _Said:
    """Reads standard error while somebody else reads standard output, and keeps its end."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stderr is not None  # noqa: S101 (for the type checker: it is a pipe)
        self._pipe = process.stderr
        self._last = b""
        self._thread = threading.Thread(target=self._read, name="pg_basebackup", daemon=True)
        self._thread.start()

    def _read(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            while piece := os.read(self._pipe.fileno(), _LAST):
                self._last = (self._last + piece)[-_LAST:]

    def text(self) -> str:
        """Return what it said last, on one line."""
        self._thread.join(2)
        return " ".join(self._last.decode(errors="replace").split())


def _range(manifest: bytes) -> Range:
    """Return what WAL a backup needs, from the end of its manifest. Raises `TarError`."""
    found = _RANGES.search(manifest)
    try:
        ranges = msgspec.json.decode(found[1] if found else b"", type=list[Range])
    except msgspec.DecodeError:
        ranges = []
    if len(ranges) != 1:
        raise TarError("The manifest of the base backup does not say which WAL it needs, so it was not kept.")
    return ranges[0]
