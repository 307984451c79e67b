"""A database that changes its timeline, at any moment between two looks at the spool: its line goes on, or ends."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import pytest

from backups.engine import names
from backups.engine.database import lsn, wal
from backups.engine.database.postgres import Session
from backups.engine.database.receiver import PARTIAL
from backups.engine.database.spool import Spool
from backups.engine.database.wal import LineLostError, Shipper
from backups.engine.keys import Keys
from backups.engine.names import SEGMENT_SIZE
from backups.engine.objects import Vault
from backups.engine.progress import Progress
from backups.engine.state import Line, Memory
from backups.engine.stores.folder import FolderStore
from tests.backups.keys import MemoryKeys

BEGAN, PAGE, LEVEL = 3 * SEGMENT_SIZE, 8192, 1
LINE = "20261124t000000z-00000000"


@dataclass
class Written:
    """A session with a database that has written up to `place`."""

    place: int

    def written(self) -> int:
        return self.place


class Ground:
    """A line on timeline 1, stored to the second page of its first segment; a spool with what pg_receivewal writes."""

    def __init__(self, folder: Path) -> None:
        self.spool = folder / "spool"
        self.spool.mkdir()
        self.store = FolderStore("folder", folder / "store", make=True)
        self.memory = Memory(folder / "state")
        self.memory.open("home")
        self.line = Line(id=LINE, system="7", timeline=1, began=BEGAN, stored=BEGAN)
        self.memory.state.line = self.line
        self.shipper = Shipper(
            Vault(store=self.store, organisation="alice-and-friends", server="home"),
            Keys(MemoryKeys(), 3600, Progress()),
            self.memory,
            self.line,
            self.spool,
            wake=lambda: None,
        )
        self.segment(1, PARTIAL)
        assert self.tail(BEGAN + PAGE)
        assert self.shipper.ship(uploads=1, level=LEVEL) == 0

    def segment(self, timeline: int, ending: str = "") -> None:
        with (self.spool / f"{lsn.name(timeline, BEGAN)}{ending}").open("wb") as file:
            file.truncate(SEGMENT_SIZE)

    def history(self, left: int) -> None:
        """Say that timeline 1 was left for timeline 2 at this place."""
        (self.spool / "00000002.history").write_text(f"1\t{lsn.text(left)}\tno recovery target specified\n")

    def tail(self, written: int) -> bool:
        return self.shipper.tail(cast("Session", Written(written)), LEVEL)

    def stored(self) -> list[str]:
        return sorted(each.name for each in self.store.listing(f"{names.LINES}{LINE}"))


@pytest.fixture
def ground(tmp_path: Path) -> Iterator[Ground]:
    made = Ground(tmp_path)
    yield made
    made.memory.close()


def test_a_history_that_comes_after_the_look_is_there_for_the_tail(ground: Ground) -> None:
    ground.history(BEGAN + PAGE)
    ground.segment(2, PARTIAL)
    assert ground.tail(BEGAN + 2 * PAGE)
    assert (ground.line.timeline, ground.line.stored) == (2, BEGAN + 2 * PAGE)
    assert names.history(LINE, 2) in ground.stored()
    assert names.wal(LINE, lsn.name(2, BEGAN), PAGE, 2 * PAGE) in ground.stored()


def test_a_history_that_comes_while_the_folder_is_read_is_there_for_what_is_finished(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder's names are read one after another, so a look may show the segment and not the history before it."""
    looks: list[Spool] = []

    def look(folder: Path) -> Spool:
        looks.append(Spool.look(folder))
        if len(looks) == 1:
            looks[0].histories.clear()
        return looks[-1]

    ground.history(BEGAN + PAGE)
    ground.segment(2)
    monkeypatch.setattr(wal, "Spool", type("Late", (), {"look": staticmethod(look)}))
    assert ground.shipper.ship(uploads=1, level=LEVEL) == 1
    assert (ground.line.timeline, ground.line.stored) == (2, BEGAN + SEGMENT_SIZE)
    assert names.history(LINE, 2) in ground.stored()


@pytest.mark.parametrize("left", [BEGAN + PAGE - 8, None], ids=["before-what-is-stored", "nobody-knows-where"])
def test_a_timeline_that_does_not_go_on_with_ours_ends_the_line(ground: Ground, left: int | None) -> None:
    before = ground.stored()
    if left is not None:
        ground.history(left)
    ground.segment(2, PARTIAL)
    with pytest.raises(LineLostError, match="brought back to an earlier moment") as lost:
        ground.tail(BEGAN + 2 * PAGE)
    assert lost.value.reason == "OtherTimeline"
    assert (ground.line.timeline, ground.line.stored) == (1, BEGAN + PAGE)
    assert set(ground.stored()) - set(before) <= {names.history(LINE, 2)}, "none of its WAL"
