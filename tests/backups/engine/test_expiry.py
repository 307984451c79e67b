"""Expiry removes what nothing kept needs, never more, and whatever happens meanwhile."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path

import pytest

from backups.engine import names, verify
from backups.engine.expiry import Expired, expire
from backups.engine.retention import Retention
from backups.engine.stores.folder import FolderStore
from tests.backups.engine.history import BEGIN, ORGANISATION, SERVER, History

PLAIN = Retention(days=30, window_days=7)


@pytest.fixture
def history(tmp_path: Path) -> History:
    return History(FolderStore("folder", tmp_path / "store", make=True))


def run(history: History, retention: Retention = PLAIN, *, dry_run: bool = False) -> Expired:
    return expire(history.store, ORGANISATION, SERVER, retention, now=history.now, dry_run=dry_run)


def twice(history: History, retention: Retention = PLAIN) -> Expired:
    """Both phases, a day apart."""
    run(history, retention)
    history.pass_(days=1, minutes=1)
    return run(history, retention)


def check(history: History, retention: Retention = PLAIN) -> None:
    """Every restore point of the retention is whole with its media, and any second of the window can be restored."""
    catalogue = history.catalogue
    wanted = [each for each in history.points if history.now - each.at < timedelta(days=retention.days)]
    begin = max(history.now - timedelta(days=retention.window_days), history.points[0].at)
    report = verify.look(catalogue, since=begin)
    assert not report.damage
    assert {each.id for each in wanted} <= set(report.sound)
    assert report.windows[-1].begin <= begin
    for moments in catalogue.moments.values():
        for moment in moments:
            if moment.at >= begin:
                catalogue.need(to=moment.at)


def names_of(history: History) -> set[str]:
    return {each.name for each in history.store.listing() if not each.name.startswith(names.EXPIRY)}


def test_weeks_of_backups_stay_bounded_and_whole(history: History) -> None:
    sizes = []
    for number in range(44):
        history.day()
        if number > 30 or number % 6 == 5:
            run(history)
            check(history)
        sizes.append(len(names_of(history)))

    assert sizes[-1] <= max(sizes[34:37])
    assert len(history.catalogue.points) <= 34
    oldest = min(history.catalogue.moments[history.line], key=lambda each: each.at)
    assert history.now - oldest.at < timedelta(days=34)


def test_nothing_goes_within_the_first_weeks(history: History) -> None:
    for _ in range(3):
        history.day()
    before = names_of(history)

    found = twice(history)

    # But pieces of segments that are whole.
    assert all(names.piece_of(name) and "." in name for name in found.removed)
    assert names_of(history) == before - set(found.removed)


def test_it_takes_two_phases_a_day_apart(history: History) -> None:
    for _ in range(35):
        history.day()
    before = names_of(history)

    first = run(history)
    assert first.waiting
    assert not first.removed
    assert names_of(history) == before
    history.pass_(hours=23)
    assert not run(history).removed
    history.pass_(hours=1, minutes=1)

    assert run(history).removed
    history.pass_(days=1)
    run(history)
    # What a manifest names that was condemned later waits for that one.
    assert not set(first.waiting) & names_of(history)


def test_a_dry_run_changes_nothing_and_says_the_same(history: History) -> None:
    for _ in range(35):
        history.day()
    run(history)
    history.pass_(days=1, minutes=1)
    before = {each.name for each in history.store.listing()}

    told = run(history, dry_run=True)

    assert {each.name for each in history.store.listing()} == before
    assert told.removed
    assert told == run(history)
    assert told.removed_bytes > 0


def test_weekly_and_monthly_restore_points_are_kept_longer(history: History) -> None:
    retention = Retention(days=30, window_days=7, weeks=8, months=4)
    for number in range(100):
        history.point()
        history.pass_(days=1)
        if number % 10 == 9:
            run(history, retention)
    twice(history, retention)

    ages = sorted((history.now - each.at).days for each in history.catalogue.points.values())
    assert sum(30 < age <= 56 for age in ages) in {4, 5}
    assert sum(age > 56 for age in ages) in {1, 2}
    assert verify.look(history.catalogue, since=history.now).fine


def test_the_last_whole_restore_point_never_goes(history: History) -> None:
    history.day()
    last = history.points[-1]
    history.pass_(days=400)

    twice(history)

    assert last.id in history.catalogue.points
    assert verify.look(history.catalogue, only=[last.id]).fine


def test_what_no_manifest_names_yet_stays_for_two_days(history: History) -> None:
    for _ in range(3):
        history.day()
    base = history._put(names.base(names.new_id(history.now)), "x").name
    media = history._put(names.media(names.new_id(history.now), 1), "x").name
    history.pass_(hours=47)
    run(history)
    history.pass_(hours=20)  # 67 hours old, and seen unneeded for none
    run(history)
    assert {base, media} <= names_of(history)
    history.pass_(hours=25)
    run(history)

    assert media not in names_of(history)
    # A restore point may wait for the first run over large media for days.
    assert base in names_of(history)
    history.pass_(days=14)
    twice(history)
    assert base not in names_of(history)


def test_a_line_whose_first_base_backup_is_not_whole_yet_keeps_its_wal(history: History) -> None:
    history.day()
    history.begin_line()
    for _ in range(10):
        history.pass_(days=1)
        history.wal()
        history.moment()
    before = {each for each in names_of(history) if history.line in each}

    twice(history)

    assert before <= names_of(history)


def test_lines_that_ended_go_with_their_last_restore_point(history: History) -> None:
    history.day()
    first = history.line
    history.begin_line()
    for number in range(34):
        history.day()
        if number % 8 == 7:
            run(history)
            check(history)
    history.day()
    twice(history)

    assert not any(first in each for each in names_of(history))


def test_long_chains_of_media_without_restore_points_stay_whole(history: History) -> None:
    history.day()
    for _ in range(20):
        history.pass_(days=1)
        history.media()
        run(history)
        history.moment()

    report = verify.look(history.catalogue, since=history.now)

    assert report.fine


@pytest.mark.parametrize("kind", ["point", "moment", "run"])
def test_what_an_unreadable_manifest_may_need_stays(history: History, kind: str) -> None:
    for _ in range(40):
        history.day()
    catalogue = history.catalogue
    point = history.points[-5]
    moment = catalogue.moments[history.line][-5]
    name = {
        "point": names.point(point.id),
        "moment": names.moment(moment.line, moment.id),
        "run": point.media.name if point.media else "",
    }[kind]
    (history.store._path / name).write_bytes(b"not what was written")
    media = {each for each in names_of(history) if each.startswith((names.MEDIA, names.MEDIA_RUNS))}
    wal = {each for each in names_of(history) if "/wal/" in each and "." not in each}

    found = twice(history)

    assert name in found.blocked
    assert media <= names_of(history)
    if kind != "run":
        assert wal <= names_of(history)


def test_an_unreadable_manifest_of_long_ago_blocks_nothing(history: History) -> None:
    history.day()
    old = names.point(history.points[0].id)
    for _ in range(45):
        history.day()
    path = history.store._path / old
    path.write_bytes(b"not what was written")
    os.utime(path, (BEGIN.timestamp(), BEGIN.timestamp()))

    found = twice(history)

    assert old in found.removed
    assert not found.blocked


class Writing(FolderStore):
    """An engine writes while expiry removes."""

    history: History
    left = 1

    def delete(self, names: Iterable[str]) -> None:
        if self.left:
            self.left -= 1
            self.history.day()
        super().delete(names)


def test_an_engine_that_writes_meanwhile_loses_nothing(history: History) -> None:
    for _ in range(40):
        history.day()
    run(history)
    history.pass_(days=1, minutes=1)
    store = Writing("folder", history.store._path)
    store.history = history

    assert expire(store, ORGANISATION, SERVER, PLAIN, now=history.now).removed

    check(history)
    history.day()
    check(history)


KILLED = """
import os, sys
from datetime import datetime
from pathlib import Path
from backups.engine.expiry import expire
from backups.engine.retention import Retention
from backups.engine.stores.folder import FolderStore
left = int(sys.argv[2])
def counted(call):
    def killing(*words, **options):
        global left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), 9)
        return call(*words, **options)
    return killing
os.unlink, os.link = counted(os.unlink), counted(os.link)
store, now = FolderStore("folder", Path(sys.argv[1])), datetime.fromisoformat(sys.argv[3])
expire(store, "alice-and-friends", "home", Retention(), now=now)
"""


@pytest.mark.parametrize("number", [1, 5, 60])
def test_kill_9_anywhere_leaves_nothing_half_removed(history: History, number: int) -> None:
    for _ in range(38):
        history.day()
    run(history)
    history.pass_(days=1, minutes=1)
    words = [sys.executable, "-c", KILLED, str(history.store._path), str(number), history.now.isoformat()]
    killed = subprocess.run(words, env={**os.environ, "PYTHONPATH": "platform:."}, check=False, timeout=120)
    assert killed.returncode == -signal.SIGKILL

    check(history)
    history.day()
    twice(history)
    check(history)
    assert len(history.catalogue.points) <= 34


def test_less_than_thirty_days_is_refused() -> None:
    with pytest.raises(ValueError, match="30 days at least"):
        Retention(days=29)
    with pytest.raises(ValueError, match="The window"):
        Retention(days=30, window_days=31)
