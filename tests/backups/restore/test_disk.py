"""What a restore leaves to others of the disk, whatever they write meanwhile."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from backups.engine.restore import disk
from backups.engine.restore.errors import Cancelled, RestoreError


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "LOOK", 0.01)


def ended(stop: threading.Event) -> None:
    """A restore that is told to end."""
    assert stop.wait(60)
    raise Cancelled


def test_a_restore_ends_when_the_disk_gets_short(tmp_path: Path) -> None:
    stop = threading.Event()
    with pytest.raises(RestoreError, match="kept for others") as caught, disk.spared([tmp_path / "new"], 2**62, stop):
        ended(stop)
    assert (caught.value.code, caught.value.retry) == ("DiskFull", True)


def test_one_that_somebody_cancels_is_cancelled(tmp_path: Path) -> None:
    low, cancelled = threading.Event(), threading.Event()
    cancelled.set()
    with pytest.raises(Cancelled), disk.spared([tmp_path], 1, low):
        ended(cancelled)
    assert not low.is_set()
