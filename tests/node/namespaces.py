"""What one run of the real node has to itself: namespaces of network, mounts and processes, a folder, control groups.

The run's processes have a process namespace of their own whose first process dies with the launcher, also by SIGKILL.
With the last of them go the network and all mounts. What the kernel does not clean, the folder under /tmp and the
control groups, is removed by the launcher, or by the next run where the launcher itself was killed.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from provisioning.providers.local.paths import agent_socket
from provisioning.providers.local.processes import Command, spawn_argv

PREFIX = "hearth-node-"
PLENTY = 12 << 20
"""kB of memory."""
STATE = "hearth"
"""The state folder of the run's Hearth, in the run's folder."""
CONTROL_GROUPS = Path("/sys/fs/cgroup")
UNSHARE = ("unshare", "--net", "--mount", "--pid", "--ipc", "--uts", "--fork", "--mount-proc", "--kill-child")


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    """Make the run's folder and control groups, named alike; remove both at the end, after all processes are gone."""
    sweep()
    fresh = Path(tempfile.mkdtemp(prefix=f".{PREFIX}", dir="/tmp"))
    with (fresh / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        # Under its name only now that the lock is held: before that, another run would take it for one that was left.
        place = fresh.rename(fresh.with_name(fresh.name[1:]))
        place.chmod(0o711)  # Hearth's database and homeservers have users of their own
        for each in controllers():
            (each / place.name).mkdir()
        try:
            yield place
        finally:
            _remove(place)


def in_memory(place: Path) -> None:
    """Keep a folder's files in memory where there is plenty: layers are synced file by file, and go anyway."""
    found = re.search(r"MemAvailable: +(\d+) kB", Path("/proc/meminfo").read_text())
    if found and int(found[1]) > PLENTY:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6g", "tmpfs", str(place)], check=True, timeout=20)


def run(argv: tuple[str, ...], place: Path, environment: Mapping[str, str]) -> int:
    """Run a command in namespaces of its own and return its exit code. Ends with us, whatever ends us."""
    first = (sys.executable, str(Path(__file__).with_name("first.py")), *argv)
    command = Command("node", (*UNSHARE, *first), place, environment)
    process = subprocess.Popen(spawn_argv(command), env=dict(environment))
    with _passed_on(process):
        return process.wait()


@contextlib.contextmanager
def _passed_on(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Pass SIGTERM and SIGINT on, so that the run ends in order and we clean up after it."""

    def pass_on(number: int, _: object) -> None:
        # unshare itself ignores both while it waits; its child is the first process of the namespace.
        for child in _children(process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, number)

    before = {each: signal.signal(each, pass_on) for each in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _children(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def sweep() -> None:
    """Remove what runs left whose launcher was killed: nobody holds their lock any more."""
    for place in Path("/tmp").glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError), (place / ".lock").open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove(place)
    for controller in controllers():
        for group in controller.glob(f"{PREFIX}*"):
            if not (Path("/tmp") / group.name).exists():
                _remove_groups(group)


def _remove(place: Path) -> None:
    for controller in controllers():
        _remove_groups(controller / place.name)
    # Its sockets lie apart, because their paths must be short.
    shutil.rmtree(agent_socket(place / STATE).parent, ignore_errors=True)
    shutil.rmtree(place, ignore_errors=True)


def _remove_groups(group: Path) -> None:
    """Remove a control group and those in it, innermost first. A dying process holds its own for a moment."""
    for each in sorted((Path(root) for root, _, _ in os.walk(group)), reverse=True):
        for _ in range(50):
            try:
                each.rmdir()
            except FileNotFoundError:
                break
            except OSError:
                time.sleep(0.1)
            else:
                break


def controllers() -> list[Path]:
    """Return the folders below which control groups are made: one, or one for each controller in version 1."""
    if (CONTROL_GROUPS / "cgroup.controllers").exists():
        return [CONTROL_GROUPS]
    return [each for each in CONTROL_GROUPS.iterdir() if each.is_dir() and not each.is_symlink()]
