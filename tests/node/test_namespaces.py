"""What a run of the real node has to itself, and that nothing of it stays, however it ends."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from provisioning.providers.local.paths import runtime_dir
from tests.left_out import leave_out
from tests.node import namespaces, probe
from tests.node.first import OWN

pytestmark = pytest.mark.xdist_group("node")  # a run removes what killed ones left, and so would another test
ROOT = Path(__file__).resolve().parents[2]
LAUNCHER = """
import signal, sys
from pathlib import Path
from tests.node import namespaces
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored, where the tests run in a shell's background
with namespaces.folder() as place:
    print(place, flush=True)
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "RUN": str(place)}
    sys.exit(namespaces.run(("/bin/sh", "-c", sys.argv[1]), place, environment))
"""
INSIDE = "mount -t tmpfs tmpfs /mnt && ip link set lo up && (sleep 7777 & ) ; exec sleep 7778"
"""An orphan and the command itself."""


@pytest.fixture(autouse=True)
def able() -> None:
    for name in ("root", "namespaces of its own", "control groups"):
        if fault := probe.PROBES[name]():
            leave_out(f"{name}: {fault}")


def launch(script: str) -> tuple[subprocess.Popen[str], Path]:
    """Start a run and return it with its folder."""
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": f"{ROOT}:{ROOT / 'platform'}"}
    words = [sys.executable, "-c", LAUNCHER, script]
    process = subprocess.Popen(words, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process.stdout:
        return process, Path(process.stdout.readline().strip())


def inside(place: Path) -> list[int]:
    """Return the processes that sleep in a run's namespaces; its launcher's environment has the folder's name."""
    found = []
    for each in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            sleeps = each.name.isdigit() and (each / "comm").read_text().strip() == "sleep"
            if sleeps and f"RUN={place}".encode() in (each / "environ").read_bytes().split(b"\0"):
                found.append(int(each.name))
    return found


def wait(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.05)


def groups(place: Path) -> list[Path]:
    return [each / place.name for each in namespaces.controllers() if (each / place.name).exists()]


def test_the_command_s_exit_code_comes_back_and_nothing_stays() -> None:
    process, place = launch("exit 3")
    assert process.wait(30) == 3
    assert not place.exists()
    assert not groups(place)


def test_what_a_run_writes_into_the_machine_s_folders_is_its_own() -> None:
    mark = f"hearth-{os.getpid()}"
    places = [f"{folder}/{mark}" for folder in OWN]
    process, _ = launch(f"touch {' '.join(places)} && test -e {places[0]}")
    assert process.wait(30) == 0
    assert [each for each in places if Path(each).exists()] == []


def test_the_sockets_of_a_killed_run_s_hearth_go_with_the_next_run() -> None:
    process, place = launch(INSIDE)
    wait(lambda: len(inside(place)) == 2, "the run did not start")
    sockets = runtime_dir(place / namespaces.STATE)
    process.kill()
    process.wait(30)
    wait(lambda: inside(place) == [], "processes are left")
    namespaces.sweep()
    assert not sockets.exists()


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_told_to_end_takes_its_orphans_along(end: signal.Signals) -> None:
    process, place = launch(INSIDE)
    wait(lambda: len(inside(place)) == 2, "the run did not start")
    process.send_signal(end)
    assert process.wait(30) != 0
    assert inside(place) == []
    assert not place.exists()
    assert not groups(place)


def test_a_killed_launcher_leaves_no_process_and_the_next_run_removes_the_rest() -> None:
    process, place = launch(INSIDE)
    wait(lambda: len(inside(place)) == 2, "the run did not start")
    process.kill()
    process.wait(30)
    wait(lambda: inside(place) == [], "processes are left")
    assert place.exists()
    assert groups(place)
    with namespaces.folder() as other:
        assert not place.exists()
        assert not groups(place)
        assert groups(other)
    assert not other.exists()


def test_another_run_s_things_are_left_alone() -> None:
    process, place = launch(INSIDE)
    wait(lambda: len(inside(place)) == 2, "the run did not start")
    namespaces.sweep()
    assert place.exists()
    assert groups(place)
    assert len(inside(place)) == 2
    process.terminate()
    process.wait(30)
