"""Where the local provider keeps things. Imports no Django."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from pathlib import Path

AGENT_SOCKET = "agent.sock"


class RuntimeFolderError(RuntimeError):
    """The folder for sockets can't be trusted; the text says why and what to do."""


def runtime_dir(state: Path) -> Path:
    """Return the folder for the sockets of the state folder `state`, made when missing.

    Paths of unix sockets end at 107 bytes (unix(7)), and a state folder may lie deep: so they get a short folder under
    /tmp, named after a hash of the state folder's real path. Others may pass through it but not list it.
    """
    folder = _place(state)
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o711)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise RuntimeFolderError(f"{folder} belongs to somebody else. Your data is safe. Remove it and start again.")
    if stat.S_IMODE(found.st_mode) != 0o711:  # the umask may have taken bits away
        folder.chmod(0o711)
    return folder


def agent_socket(state: Path) -> Path:
    """Return the socket that the agent of `state` listens on. Makes nothing: a caller leaves no folder behind."""
    return _place(state) / AGENT_SOCKET


def _place(state: Path) -> Path:
    name = hashlib.sha256(os.fsencode(state.resolve())).hexdigest()[:8]
    return Path(f"/tmp/hearth-{name}")  # noqa: S108 (its owner is checked where it is made)
