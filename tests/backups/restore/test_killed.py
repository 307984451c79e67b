"""Restores under load, and those that are cut off: killed, cancelled, out of room. The same call again is right."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import msgspec
import psutil
import pytest

from backups.engine.restore import disk
from backups.engine.restore.errors import RestoreError
from backups.engine.restore.request import Request
from tests.backups.engine.conftest import benched, wait_for
from tests.backups.restore.busy import Busy
from tests.backups.restore.conftest import Server, end, served
from tests.left_out import leave_out

pytestmark = pytest.mark.xdist_group("backed")  # one server's backups, made once
KILLS = int(os.environ.get("KILLS", "3"))
"""`make test-long` has more."""


@pytest.fixture(scope="module")
def filled(template: Path) -> Iterator[Busy]:
    """A server that was backed up under load, made once for all: nothing here writes to its store."""
    with benched(template) as bench, served(bench) as server:
        yield Busy(server).fill()


@pytest.fixture
def busy(filled: Busy) -> Iterator[Busy]:
    yield filled
    server = filled.server
    for each in server.living:
        each.stop()
    server.living.clear()
    shutil.rmtree(server.folder / "r", ignore_errors=True)


def _left(folder: Path) -> list[psutil.Process]:
    """Processes that have to do with a folder."""
    found = []
    for each in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if any(str(folder / "r") in word for word in each.cmdline()):
                found.append(each)
    return found


@pytest.mark.repeated
def test_a_restore_that_is_killed_again_and_again_ends_well(busy: Busy) -> None:
    server = busy.server
    request = server.request(to=busy.moment)
    chance = random.Random(6)
    for _ in range(KILLS):
        process = server.process(request)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(chance.uniform(0.5, 4))
        end(process, signal.SIGKILL)
        wait_for(lambda: not _left(server.folder))

    process = server.process(request)
    told, _ = process.communicate(timeout=120)

    assert process.returncode == 0, told
    busy.check(request)
    assert sorted(each.name for each in Path(request.work).iterdir()) == ["lock", "state.json"]


@pytest.mark.parametrize("step", ["base", "replay", "finish"])
def test_a_cancelled_restore_leaves_no_process_and_can_go_on(busy: Busy, step: str) -> None:
    server = busy.server
    request = server.request(to=busy.moment)
    process = server.process(request)
    assert process.stdout is not None
    for line in process.stdout:
        if f'"step":"{step}"'.encode() in line:
            break

    code, told = end(process, signal.SIGTERM)

    assert (code, told[-1].get("code")) == (3, "Cancelled") or (code, told[-1]["event"]) == (0, "restored")
    wait_for(lambda: not _left(server.folder))
    if code:
        server.restore(request)
    busy.check(request)


@pytest.mark.parametrize("seen_before", [True, False])
def test_a_full_disk_is_told_and_gone_on_from(
    busy: Busy, monkeypatch: pytest.MonkeyPatch, *, seen_before: bool
) -> None:
    if os.geteuid() != 0:
        leave_out("only root may mount a small disk.")
    server = busy.server
    place = server.folder / "r"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=60m,mode=755", "hearth-test", str(place)], check=True)
    try:
        request = server.request(to=busy.moment)
        with monkeypatch.context() as patch:
            if not seen_before:
                patch.setattr(disk, "check_room", lambda *_, **__: None)
            error = _refusal(server, request)
        assert (error.code, error.retry) == ("DiskFull", True)
        assert "Make room" in str(error)
        assert Path(request.data).exists() is not seen_before

        subprocess.run(["mount", "-o", "remount,size=600m", str(place)], check=True)
        server.restore(request)
        busy.check(request)
    finally:
        for each in server.living:
            each.stop()
        subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_disk_that_others_fill_meanwhile_is_left_to_them(busy: Busy, monkeypatch: pytest.MonkeyPatch) -> None:
    server = busy.server
    request = server.request(to=busy.moment)
    with monkeypatch.context() as patch:
        patch.setattr(disk, "check_room", lambda *_, **__: None)  # there was room at its beginning
        patch.setattr(disk, "LOOK", 0.01)
        error = _refusal(server, msgspec.structs.replace(request, spare=2**62))
    assert (error.code, error.retry) == ("DiskFull", True)
    assert "kept for others" in str(error)
    server.restore(request)
    busy.check(request)


def _refusal(server: Server, request: Request) -> RestoreError:
    with pytest.raises(RestoreError) as caught:
        server.restore(request)
    return caught.value
