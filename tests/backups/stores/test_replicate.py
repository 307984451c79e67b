"""The second store gets all of the first, never a point that is not whole, whatever happens meanwhile."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from backups.engine import names as where
from backups.engine import replicate
from backups.engine.lacking import Lag
from backups.engine.replicate import Replication
from backups.engine.stores.base import Finding, NoSuchObject, Store, Stored, StoreError
from backups.engine.stores.folder import FolderStore
from tests.backups.s3_servers import S3Server, open_store
from tests.backups.stores.contract import names, read
from tests.backups.stores.history import History


class Troubled:
    """A store before another one, with a hook before each call; for faults that a disk does not give."""

    def __init__(self, inner: Store) -> None:
        self.inner = inner
        self.on_get: Callable[[str], None] = lambda _: None
        self.on_put: Callable[[str], None] = lambda _: None
        self.puts: list[str] = []

    @property
    def name(self) -> str:
        return self.inner.name

    def put(self, name: str, pieces: Iterable[bytes | memoryview]) -> Stored:
        self.on_put(name)
        stored = self.inner.put(name, pieces)
        self.puts.append(name)
        return stored

    def get(self, name: str, *, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        self.on_get(name)
        yield from self.inner.get(name, offset=offset, length=length)

    def head(self, name: str) -> Stored:
        return self.inner.head(name)

    def listing(self, prefix: str = "") -> Iterator[Stored]:
        return self.inner.listing(prefix)

    def delete(self, names: Iterable[str]) -> None:
        self.inner.delete(names)

    def sweep(self) -> int:
        return self.inner.sweep()

    def check(self) -> list[Finding]:
        return self.inner.check()


@pytest.fixture
def first(tmp_path: Path) -> Troubled:
    return Troubled(FolderStore("first", tmp_path / "first", make=True))


@pytest.fixture
def second(tmp_path: Path) -> Troubled:
    return Troubled(FolderStore("second", tmp_path / "second", make=True))


@pytest.fixture
def history(first: Troubled) -> History:
    """Two restore points, with media, WAL and moments between."""
    made = History(first)
    made.media()
    made.point()
    for _ in range(3):
        made.moment(made.wal(), made.wal())
    made.media()
    made.point()
    made.wal()
    return made


def equal(one: Store, two: Store) -> bool:
    return names(one) == names(two) and all(read(one, name) == read(two, name) for name in names(one))


def flip(folder: Path) -> None:
    data = bytearray(folder.read_bytes())
    data[len(data) // 2] ^= 1
    folder.chmod(0o600)
    folder.write_bytes(data)


def test_everything_is_copied_points_last(first: Troubled, second: Troubled, history: History) -> None:
    replication = Replication(first, second)
    before = replication.lag()
    assert before.objects == len(names(first))
    assert before.bytes == sum(each.size for each in first.listing())
    assert before.seconds > 0
    report = replication.turn()
    assert (report.faults, report.waiting, report.stopped) == ([], [], None)
    assert (report.copied, report.bytes) == (before.objects, before.bytes)
    assert (report.before.objects, report.after) == (before.objects, Lag())
    assert equal(first, second)
    kinds = [0 if not is_manifest(name) else 2 if name.startswith(where.POINTS) else 1 for name in second.puts]
    assert kinds == sorted(kinds)
    again = replication.turn()
    assert (again.copied, again.bytes, again.after) == (0, 0, Lag())


def is_manifest(name: str) -> bool:
    return name.startswith((where.POINTS, where.MEDIA_RUNS)) or "/moments/" in name


def test_it_goes_on_with_what_is_new(first: Troubled, second: Troubled, history: History) -> None:
    replication = Replication(first, second)
    replication.turn()
    last = history.wal()
    assert replication.turn().copied == 1, "WAL is copied before a moment names it"
    history.moment(last)
    report = replication.turn()
    assert (report.copied, report.faults) == (1, [])
    assert equal(first, second)


@pytest.mark.parametrize("stop_at", range(0, 24, 3))
def test_a_turn_that_ends_anywhere_leaves_only_whole_points(
    first: Troubled, second: Troubled, history: History, stop_at: int
) -> None:
    counted = 0

    def fail(_: str) -> None:
        nonlocal counted
        counted += 1
        if counted > stop_at:
            raise StoreError("The store is away.")

    second.on_put = fail
    report = Replication(first, second, workers=1).turn()
    if stop_at < len(names(first)):
        assert report.stopped is not None
        assert report.after.objects == len(names(first)) - report.copied > 0
    assert_whole(first, second)
    second.on_put = lambda _: None
    assert Replication(first, second).turn().stopped is None
    assert equal(first, second)


def assert_whole(first: Store, second: Store) -> None:
    """Whatever a manifest in the second store names is there."""
    there = names(second)
    for name in filter(is_manifest, there):
        text = read(second, name).decode()
        missing = [each for each in names(first) if f'"{each}"' in text and each not in there]
        assert missing == [], name


def test_damage_at_the_source_is_not_copied(
    first: Troubled, second: Troubled, history: History, tmp_path: Path
) -> None:
    [older, newer] = names(first, where.POINTS)
    base = where.base(newer.removeprefix(where.POINTS))
    flip(tmp_path / "first" / base)
    report = Replication(first, second).turn()
    assert [(each.name, each.code) for each in report.faults] == [(base, "StoreDamaged")]
    assert report.waiting == [newer]
    assert names(second, where.POINTS) == [older]
    assert base not in names(second)
    assert report.after.objects == 2


def test_a_manifest_that_can_not_be_read(first: Troubled, second: Troubled, history: History, tmp_path: Path) -> None:
    [older, newer] = names(first, where.POINTS)
    (tmp_path / "first" / newer).write_bytes(b"{")
    report = Replication(first, second).turn()
    assert [each.name for each in report.faults] == [newer]
    assert names(second, where.POINTS) == [older]


def test_what_was_copied_before_it_was_named_is_compared(
    first: Troubled, second: Troubled, history: History, tmp_path: Path
) -> None:
    """Another process copied it, and its copy went bad; nobody knew its checksum yet."""
    last = history.wal()
    Replication(first, second).turn()
    flip(tmp_path / "second" / last.name)
    named = history.moment(last)
    report = Replication(first, second).turn()
    assert [each.name for each in report.faults] == [last.name]
    assert report.waiting == [named]


def test_what_was_damaged_before_it_was_named_is_found(
    first: Troubled, second: Troubled, history: History, tmp_path: Path
) -> None:
    replication = Replication(first, second)
    replication.turn()
    last = history.wal()
    flip(tmp_path / "first" / last.name)
    assert replication.turn().faults == []
    named = history.moment(last)
    report = replication.turn()
    assert [each.name for each in report.faults] == [last.name]
    assert report.waiting == [named]
    assert named not in names(second)


def test_stores_that_disagree_are_told(first: Troubled, second: Troubled, history: History, tmp_path: Path) -> None:
    replication = Replication(first, second)
    replication.turn()
    name = names(second, "points-of/")[0]
    (tmp_path / "second" / name).write_bytes(b"other")
    report = replication.turn()
    assert [(each.name, each.code) for each in report.faults] == [(name, "StoreDamaged")]
    assert read(second, name) == b"other", "nothing is written over"


def test_an_object_that_the_second_lost_is_copied_again(
    first: Troubled, second: Troubled, history: History, tmp_path: Path
) -> None:
    Replication(first, second).turn()
    name = names(second, "points-of/")[0]
    os.utime(tmp_path / "first" / name, (time.time() - 86_400,) * 2)
    second.delete([name])
    assert Replication(first, second).turn().copied == 1
    assert equal(first, second)
    second.delete([name])
    flip(tmp_path / "first" / name)
    os.utime(tmp_path / "first" / name, (time.time() - 86_400,) * 2)
    report = Replication(first, second).turn()
    assert [each.name for each in report.faults] == [name], "an old manifest knows its checksum"
    assert name not in names(second)


def test_objects_that_expire_meanwhile(first: Troubled, second: Troubled, history: History) -> None:
    [older, newer] = names(first, where.POINTS)
    base = where.base(older.removeprefix(where.POINTS))

    def expire(name: str) -> None:
        if name == base:
            first.inner.delete([older, base])

    first.on_get = expire
    report = Replication(first, second).turn()
    assert report.stopped is None
    assert names(second, where.POINTS) == [newer]
    first.on_get = lambda _: None
    assert Replication(first, second).turn().after == Lag()
    assert_whole(first, second)


def test_pieces_of_wal_that_were_put_together_meanwhile(first: Troubled, second: Troubled, history: History) -> None:
    segment = f"00000001{0:08X}{history.segment:08X}"
    piece = history.data(where.wal(history.line, segment, 0, 1000))
    named = history.moment(piece)
    whole = history.wal()
    first.delete([piece.name])
    history.moment(whole)
    report = Replication(first, second).turn()
    assert (report.faults, report.waiting) == ([], [])
    assert named in names(second)


def test_objects_that_appear_meanwhile(first: Troubled, second: Troubled, history: History) -> None:
    done = threading.Event()

    def write() -> None:
        for _ in range(10):
            history.moment(history.wal())
        history.media()
        history.point()
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    replication = Replication(first, second)
    while not done.is_set():
        report = replication.turn()
        assert (report.stopped, report.faults) == (None, [])
        assert_whole(first, second)
    writer.join()
    replication.turn()
    assert equal(first, second)


def test_two_at_once(first: Troubled, second: Troubled, history: History) -> None:
    reports = []
    threads = [threading.Thread(target=lambda: reports.append(Replication(first, second).turn())) for _ in range(3)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert [(each.stopped, each.faults) for each in reports] == [(None, [])] * 3
    assert equal(first, second)


@pytest.mark.parametrize("code", ["StoreAway", "StoreFull", "StoreDenied", "StoreMissing"])
def test_a_target_that_fails_ends_the_turn(first: Troubled, second: Troubled, history: History, code: str) -> None:
    def fail(_: str) -> None:
        raise StoreError("It failed.", code=code)

    second.on_put = fail
    report = Replication(first, second).turn()
    assert report.stopped is not None
    assert report.stopped.code == code
    assert report.copied == 0
    assert names(second) == []


def test_an_end_from_outside(first: Troubled, second: Troubled, history: History) -> None:
    replication = Replication(first, second, rate=10_000)
    threading.Timer(0.3, replication.stop).start()
    report = replication.turn()
    assert report.stopped is not None
    assert report.copied < report.before.objects
    assert_whole(first, second)
    assert replication.turn().copied == 0


def test_the_rate_is_bounded(first: Troubled, second: Troubled, history: History) -> None:
    total = sum(each.size for each in first.listing())
    started = time.monotonic()
    report = Replication(first, second, rate=total / 2).turn()
    assert report.bytes == total
    assert time.monotonic() - started > 1.0


def test_repair_after_the_first_is_lost(first: Troubled, second: Troubled, history: History, tmp_path: Path) -> None:
    Replication(first, second).turn()
    fresh = FolderStore("first", tmp_path / "fresh", make=True)
    report = Replication(second, fresh).turn()
    assert (report.faults, report.waiting, report.stopped) == ([], [], None)
    assert equal(second, fresh)
    assert equal(first, fresh)


def test_a_turn_with_bounds_goes_on_where_it_ended(first: Troubled, second: Troubled, history: History) -> None:
    turns, more = 0, True
    while more:
        report = Replication(first, second, most=1).turn()
        assert (report.stopped, report.faults) == (None, [])
        assert report.copied > 0, "the first object is copied, however large it is"
        assert_whole(first, second)
        more, turns = report.more, turns + 1
        assert report.is_complete is not more
    assert turns > 5
    assert equal(first, second)


def test_a_turn_without_time_begins_nothing(first: Troubled, second: Troubled, history: History) -> None:
    report = Replication(first, second, seconds=0).turn()
    assert (report.copied, report.more, report.is_complete) == (0, True, False)
    assert names(second) == []


def test_more_manifests_than_one_turn_reads(
    first: Troubled, second: Troubled, history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replicate, "MOST_MANIFESTS", 1)
    replication = Replication(first, second, workers=1)
    report = replication.turn()
    assert report.more
    named = "".join(read(second, name).decode() for name in names(second) if is_manifest(name))
    assert all(f'"{name}"' in named or is_manifest(name) or name.startswith("media/") for name in names(second))
    for _ in range(20):
        report = replication.turn()
    assert report.is_complete
    assert equal(first, second)


def test_it_tells_what_the_stores_show(first: Troubled, second: Troubled, history: History) -> None:
    points = {name.removeprefix(where.POINTS) for name in names(first, where.POINTS)}
    newest = max(name.rsplit("/", 1)[-1] for name in names(first, where.LINES) if "/moments/" in name)
    report = Replication(first, second).turn()
    assert report.source.points == report.target.points == points
    assert report.source.moments == report.target.moments == {history.line: newest}
    assert (report.target_before.points, report.target_before.moments) == (set(), {})


def test_what_expiry_wrote_down_stays_in_its_store(first: Troubled, second: Troubled, history: History) -> None:
    first.inner.put(f"{where.EXPIRY}{where.new_id()}", [b"{}"])
    report = Replication(first, second).turn()
    assert report.is_complete
    assert names(second, where.EXPIRY) == []


COPIER = """
import sys
from pathlib import Path
from backups.engine.replicate import Replication
from backups.engine.stores.folder import FolderStore
first, second = (FolderStore(each, Path(sys.argv[1]) / each) for each in ("first", "second"))
print("begun", flush=True)
Replication(first, second, rate=3_000_000).turn()
"""


def test_killed_again_and_again(first: Troubled, second: Troubled, history: History, tmp_path: Path) -> None:
    second.check()
    argv, environment = [sys.executable, "-c", COPIER, str(tmp_path)], os.environ | {"PYTHONPATH": "platform:."}
    for seconds in (0.2, 0.6, 1.2):
        with subprocess.Popen(argv, stdout=subprocess.PIPE, env=environment) as copier:
            assert copier.stdout is not None
            copier.stdout.readline()
            time.sleep(seconds)
            copier.send_signal(signal.SIGKILL)
        assert_whole(first, second)
    assert Replication(first, second).turn().faults == []
    assert equal(first, second)


@pytest.mark.xdist_group("s3")
@pytest.mark.parametrize("direction", ["to the other provider", "to a folder"])
def test_between_kinds_of_stores(minio: S3Server, plain_s3: S3Server, tmp_path: Path, direction: str) -> None:
    first = open_store(minio.new_prefix())
    history = History(first)
    history.media()
    history.data("points-of/large", 20_000_000)
    history.point()
    second: Store = FolderStore("second", tmp_path, make=True)
    if direction == "to the other provider":
        second = open_store(plain_s3.new_prefix())
    report = Replication(first, second).turn()
    assert (report.faults, report.waiting, report.stopped) == ([], [], None)
    assert equal(first, second)
    repaired = open_store(minio.new_prefix())
    report = Replication(second, repaired).turn()
    assert (report.faults, report.waiting, report.stopped) == ([], [], None)
    assert equal(first, repaired)
    with pytest.raises(NoSuchObject):
        repaired.head("points-of/nothing")
    first.close()
    repaired.close()
