"""A way for unprivileged users to folders that lie below a closed one, such as a checkout under /root.

The agent gets a mount namespace of its own (mount_namespaces(7)). In it, and in no other process's view, the folders
that servers need are shown again below a place that everybody may pass. All of it goes with the agent's processes:
nothing is left to clean up, and no permission of anybody's folder is changed.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping
from pathlib import Path

CLONE_NEWNS = 0x20000
MS_BIND, MS_REC, MS_SLAVE = 0x1000, 0x4000, 0x80000
PLACES = (Path("/mnt"), Path("/media"), Path("/srv"), Path("/opt"))
"""Folders that every Linux has and whose content an agent can do without."""


def show(folders: Mapping[str, Path], *, keep: tuple[Path, ...] = ()) -> dict[str, Path] | None:
    """Show each folder below a passable place, by its name there. None: this machine does not let us.

    Nothing that lies below `keep` or is one of the folders is covered.
    """
    needed = [path.resolve() for path in (*folders.values(), *keep)]
    free = [place for place in PLACES if place.is_dir() and not any(path.is_relative_to(place) for path in needed)]
    libc = ctypes.CDLL(None, use_errno=True)
    if not free or libc.unshare(CLONE_NEWNS) != 0:
        return None
    # One that is empty, if there is: a disk for backups may be mounted below another.
    base = next((place for place in free if not any(place.iterdir())), free[0])
    try:
        # Mounts made outside later still come in; ours never go out.
        _mount(libc, Path("none"), Path("/"), MS_REC | MS_SLAVE)
        _mount(libc, Path("tmpfs"), base, 0, b"size=64k,mode=0711")
        shown = {name: base / name for name in folders}
        for name, folder in folders.items():
            shown[name].mkdir(parents=True)
            _mount(libc, folder.resolve(), shown[name], MS_BIND | MS_REC)
    except OSError:
        return None
    return shown


def _mount(libc: ctypes.CDLL, source: Path, target: Path, flags: int, options: bytes | None = None) -> None:
    kind = b"tmpfs" if options else None
    if libc.mount(os.fsencode(source), os.fsencode(target), kind, ctypes.c_ulong(flags), options) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(target))
