"""Which of Hearth's processes on this machine would not find the HSM: looked up in /proc before root keys move to it.

A process knows the settings that it was started with. One without the HSM's could open nothing any more after the move,
while the command that moved, with other settings in its shell, saw nothing wrong.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

HSM = {"HEARTH_HSM_MODULE": "", "HEARTH_HSM_TOKEN": "", "HEARTH_HSM_SLOT": "0", "HEARTH_HSM_PIN_FILE": ""}
"""What must be the same, and what it is where it is not set."""
SHARED = ("DATABASE_URL", "HEARTH_STATE")
SERVING = (b"config.asgi", b"celery")
"""What the command line of a process that opens keys holds: the web server's, a worker's."""
PROC = Path("/proc")


def lacking(settings: Mapping[str, Any], proc: Path = PROC) -> list[str]:
    """Return the processes of the same Hearth (its database, or its state folder) that know no HSM, or another one."""
    wanted = {name: str(settings[name]) for name in HSM}
    found = []
    for pid, command, environment in _serving(proc):
        if not any(environment.get(name) == str(settings[name]) for name in SHARED):
            continue
        if {name: environment.get(name) or default for name, default in HSM.items()} != wanted:
            found.append(f"the {'web server' if SERVING[0] in command else 'worker'} (process {pid})")
    return found


def _serving(proc: Path) -> Iterator[tuple[int, bytes, dict[str, str]]]:
    for folder in sorted(proc.iterdir()):
        if not folder.name.isdigit():
            continue
        try:
            command = (folder / "cmdline").read_bytes()
            if not any(word in command for word in SERVING):
                continue
            entries = (folder / "environ").read_bytes().split(b"\0")
        except OSError:  # ended meanwhile, or another user's: not of this Hearth, whose key file is ours
            continue
        pairs = (entry.decode(errors="replace").partition("=") for entry in entries)
        yield int(folder.name), command, {name: value for name, _, value in pairs}
