"""What an export keeps beside its work: whose turn it is, and which archive it has made already. Imports no Django."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from backups.engine.restore.errors import RestoreError
from security.durable import replace_file


class _Made(msgspec.Struct, kw_only=True):
    archive: str
    result: dict[str, Any]


@contextlib.contextmanager
def alone(work: Path) -> Iterator[None]:
    """Let no other export use this folder meanwhile. Raises `RestoreError` (`Busy`), `OSError`."""
    work.parent.mkdir(parents=True, exist_ok=True)
    path = work.with_name(f"{work.name}.lock")
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            text = f"Another export that uses {work} is going on. It was left alone. Wait until it ends."
            raise RestoreError(text, code="Busy", retry=True) from None
        yield
    finally:
        os.close(handle)


def note(work: Path, archive: str, result: dict[str, Any]) -> None:
    """Write down that an archive lies in the store, before what it was made of is removed. Raises `OSError`."""
    replace_file(_path(work), msgspec.json.encode(_Made(archive=archive, result=result)))


def noted(work: Path, archive: str) -> dict[str, Any] | None:
    """Return what was told of the archive; None if it was not made yet. Raises `OSError`."""
    with contextlib.suppress(FileNotFoundError, msgspec.DecodeError):
        made = msgspec.json.decode(_path(work).read_bytes(), type=_Made)
        if made.archive == archive:
            return made.result
    return None


def _path(work: Path) -> Path:
    return work.with_name(f"{work.name}.sealed")
