"""The state folder: is it ours, whole, writable and free; its lock and its secrets."""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import shutil
import stat
import tempfile
from pathlib import Path

from config.embedded.console import StartRefused
from security.rootkey import key_files

FORMAT = "hearth state 1"
LEAST_FREE = 1024**3
FOLDERS = ("keys", "secrets", "logs", "cache")
# What may lie in a folder that Hearth has not used yet: environments and the tests' own things are made beside.
HARMLESS = {"test", "environments", "cache", "lock", ".gitignore"}


def prepare_state(state: Path) -> None:
    """Make the folder if it is missing and check it, or raise `StartRefused`. Somebody else's folder is left alone."""
    try:
        state.mkdir(mode=0o711, parents=True, exist_ok=True)
        _check_writable(state)
        _check_ours(state)
        _check_whole(state)
        _check_space(state)
        for name in FOLDERS:
            (state / name).mkdir(mode=0o700, exist_ok=True)
        (state / "format").write_text(FORMAT + "\n", encoding="utf-8")
    except (FileExistsError, NotADirectoryError):
        raise StartRefused(
            f"The state folder {state} can't be made: there is a file in its place. Nothing was changed. "
            "Move the file away, or set HEARTH_STATE to another folder."
        ) from None
    except OSError as error:
        raise StartRefused(explain(error, state)) from None


def explain(error: OSError, state: Path) -> str:
    """Return a sentence for an error of the file system."""
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return f"The disk of {state} is full. What was stored before is unharmed. Free some space, then start again."
    return (
        f"The state folder {state} can't be used: {error.strerror} ({error.filename or state}). Nothing was changed. "
        "Correct its permissions, or set HEARTH_STATE to another folder."
    )


def _check_writable(state: Path) -> None:
    owner = state.stat().st_uid
    if owner != os.geteuid():
        raise StartRefused(
            f"The state folder {state} belongs to another user (uid {owner}); you are uid {os.geteuid()}. Nothing was "
            "changed. Start Hearth as that user, or set HEARTH_STATE to another folder."
        )
    with tempfile.TemporaryFile(dir=state) as file:
        file.write(b"x")


def _check_ours(state: Path) -> None:
    mark = state / "format"
    if mark.exists():
        found = mark.read_text(encoding="utf-8", errors="replace").strip()
        if found != FORMAT:
            raise StartRefused(
                f"The state folder {state} says {found[:60]!r}, and this Hearth knows only {FORMAT!r}. It is damaged "
                "or was made by a newer Hearth. Nothing was changed. Start that version, or restore the folder."
            )
        return
    strange = sorted(path.name for path in state.iterdir() if path.name not in HARMLESS)
    if strange:
        raise StartRefused(
            f"The folder {state} is not a state folder of Hearth: it holds other things ({', '.join(strange[:3])}). "
            "Nothing was changed. Set HEARTH_STATE to an empty or new folder."
        )


def _check_whole(state: Path) -> None:
    key = state / "keys" / "root.key"
    data = state / "postgres"
    if data.exists() and not (data / "PG_VERSION").is_file():
        raise StartRefused(
            f"The database folder {data} is damaged: its file PG_VERSION is missing. Nothing was changed. Restore the "
            "state folder from a copy; moving the folder away would start with an empty database."
        )
    # With an HSM the database says which root key it needs; `prepare` looks whether that one is there.
    names = ("HEARTH_KEY_FILE", "HEARTH_KEY_FILE_FILE", "HEARTH_HSM_MODULE", "HEARTH_HSM_MODULE_FILE")
    elsewhere = any(os.environ.get(name) for name in names)
    if data.exists() and not elsewhere and not key_files(key):
        raise StartRefused(
            f"The root key {key} is missing, but there is a database whose secrets only it can open. Nothing was "
            "changed. Restore the key from a copy, or set HEARTH_KEY_FILE to where it is."
        )


def _check_space(state: Path) -> None:
    free = shutil.disk_usage(state).free
    if free < LEAST_FREE:
        raise StartRefused(
            f"The disk of {state} is nearly full: {free // 2**20} MB are free and Hearth wants at least 1024. "
            "Nothing was changed. Free some space, or set HEARTH_STATE to a folder on another disk."
        )


class Lock:
    """Held while Hearth runs on this state. The kernel frees it with the process, so a stale one can't exist."""

    def __init__(self, state: Path) -> None:
        self._path = state / "lock"
        self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid, _, url = os.read(self._fd, 400).decode(errors="replace").strip().partition("\n")
            os.close(self._fd)
            raise StartRefused(
                f"Hearth already runs on this state folder: process {pid or 'unknown'}, {url or 'still starting'}. "
                "Open that address, or stop it first. For a second Hearth set HEARTH_STATE and HEARTH_PORT."
            ) from None

    def write(self, url: str) -> None:
        """Note who holds it and where to find them, for the sentence that a second instance prints."""
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, f"{os.getpid()}\n{url}\n".encode(), 0)


def ensure_secret(path: Path) -> str:
    """Return the secret in `path`, made on first use with mode 0600."""
    if path.exists():
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            raise StartRefused(f"The secret {path} can be read by others. Nothing was started. Run: chmod 600 {path}")
        if value := path.read_text(encoding="utf-8").strip():
            return value
    value = secrets.token_urlsafe(48)
    new = path.with_name(f".{path.name}.new")
    new.unlink(missing_ok=True)
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(value + "\n")
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
    return value
