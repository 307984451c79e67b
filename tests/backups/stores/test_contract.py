"""What every store must do, whatever it is made of."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta

import pytest

from backups.engine.stores.base import NoSuchObject, ObjectExists, Store, StoreError
from tests.backups.stores.contract import MIB, in_pieces, names, noise, read

pytestmark = pytest.mark.xdist_group("s3")

SIZES = (0, 1, 17, MIB - 1, MIB, MIB + 1, 8 * MIB - 1, 8 * MIB, 8 * MIB + 1, 16 * MIB, 21 * MIB + 5)


@pytest.mark.parametrize("size", SIZES)
def test_what_was_put_comes_back(store: Store, size: int) -> None:
    data = noise(size)
    stored = store.put("points-of/1/base.tar.zst", in_pieces(data, 300_001))
    assert (stored.name, stored.size) == ("points-of/1/base.tar.zst", size)
    assert stored.sha256 == hashlib.sha256(data).hexdigest()
    assert read(store, "points-of/1/base.tar.zst") == data
    assert store.head(stored.name).size == size
    [listed] = store.listing()
    assert (listed.name, listed.size, listed.mark) == (stored.name, size, stored.mark)
    assert store.head(stored.name).mark == stored.mark


def test_pieces_of_all_sizes(store: Store) -> None:
    pieces: list[bytes | memoryview] = [b"", b"a", noise(9 * MIB), b"", memoryview(noise(3 * MIB)), b"z"]
    store.put("x", pieces)
    assert read(store, "x") == b"".join(pieces)


def test_no_pieces_at_all(store: Store) -> None:
    assert store.put("empty", []).size == 0
    assert read(store, "empty") == b""


def test_pieces_that_come_are_small(store: Store) -> None:
    store.put("x", [noise(20 * MIB)])
    assert max(map(len, store.get("x"))) <= MIB


BEYOND = [(20 * MIB, None), (20 * MIB - 1, 5), (20 * MIB, 5), (30 * MIB, None), (30 * MIB, 5), (7, 0)]


@pytest.mark.parametrize(
    ("offset", "length"),
    [(0, None), (0, 0), (0, 1), (5, 10), (MIB - 1, 2), (8 * MIB - 3, 6), (3, 17 * MIB), *BEYOND],
)
def test_a_part(store: Store, offset: int, length: int | None) -> None:
    data = noise(20 * MIB)
    store.put("x", [data])
    end = None if length is None else offset + length
    assert b"".join(store.get("x", offset=offset, length=length)) == data[offset:end]


def test_a_part_of_nothing(store: Store) -> None:
    store.put("x", [])
    assert b"".join(store.get("x", offset=0, length=5)) == b""
    assert b"".join(store.get("x", offset=3)) == b""


@pytest.mark.parametrize("part", [{"offset": -1}, {"length": -1}])
def test_a_part_that_can_not_be(store: Store, part: dict[str, int]) -> None:
    store.put("x", [b"abc"])
    with pytest.raises(StoreError) as caught:
        read(store, "x", **part)
    assert caught.value.code == "StoreMisused"


def test_leaving_early(store: Store) -> None:
    store.put("x", [noise(20 * MIB)])
    before = threading.active_count()
    for _ in range(3):
        pieces = store.get("x")
        next(pieces)
        pieces.close()  # type: ignore[attr-defined]  # every store's are generators
    assert threading.active_count() <= before + 16
    assert len(read(store, "x")) == 20 * MIB


@pytest.mark.parametrize("size", [3, 20 * MIB])
def test_a_name_that_is_taken(store: Store, size: int) -> None:
    store.put("points/1", [b"first"])
    with pytest.raises(ObjectExists, match="points/1 is in the store already") as caught:
        store.put("points/1", [noise(size)])
    assert (caught.value.code, caught.value.retry) == ("Exists", False)
    assert read(store, "points/1") == b"first"


@pytest.mark.parametrize("size", [3, 9 * MIB])
def test_of_many_that_put_at_once_one_wins(store: Store, size: int) -> None:
    won, lost, faults = [], [], []
    start = threading.Barrier(6)

    def put(own: int) -> None:
        data = noise(size, own)
        start.wait()
        try:
            store.put("points/1", [data])
            won.append(data)
        except ObjectExists:
            lost.append(own)
        except BaseException as error:
            faults.append(error)

    threads = [threading.Thread(target=put, args=(own,)) for own in range(6)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert faults == []
    assert (len(won), len(lost)) == (1, 5)
    assert read(store, "points/1") == won[0]


@pytest.mark.parametrize("before", [0, 100, 20 * MIB])
def test_what_the_pieces_raise_passes_through(store: Store, before: int) -> None:
    def pieces() -> Iterator[bytes]:
        yield noise(before)
        assert names(store) == [], "it was seen before it was whole"
        raise OSError(28, "the caller's own")

    with pytest.raises(OSError, match="the caller's own"):
        store.put("x", pieces())
    assert names(store) == []
    with pytest.raises(NoSuchObject):
        store.head("x")
    store.put("x", [b"again"])
    assert read(store, "x") == b"again"


@pytest.mark.parametrize("name", ["x", "a/b/c"])
def test_what_is_not_there(store: Store, name: str) -> None:
    store.put("other", [b"x"])
    for call in (lambda: read(store, name), lambda: store.head(name), lambda: read(store, name, offset=4, length=3)):
        with pytest.raises(NoSuchObject) as caught:
            call()
        assert caught.value.name == name
    store.delete([name])


BAD = ["", "/", "/etc/passwd", "..", "../x", "a/../x", "a/..", "./a", "a//b", "a/", ".hearth-store/x", "a/.b"]
BAD += ["a\0b", "a b", "a\nb", "a\n", "ä", "a\\b", "a?b", "a#b", "a%2e", "~x", "x" * 600, "x" * 201, "a/" * 300 + "a"]


@pytest.mark.parametrize("name", BAD, ids=range(len(BAD)))
def test_a_name_that_can_not_be(store: Store, name: str) -> None:
    calls = (
        lambda: store.put(name, [b"x"]),
        lambda: read(store, name),
        lambda: store.head(name),
        lambda: store.delete([name]),
    )
    for call in calls:
        with pytest.raises(StoreError) as caught:
            call()
        assert (caught.value.code, caught.value.retry) == ("StoreMisused", False)
    assert names(store) == []


@pytest.mark.parametrize("prefix", ["/", "..", "../", "a/../", "a//", ".hidden", "ä"])
def test_a_prefix_that_can_not_be(store: Store, prefix: str) -> None:
    with pytest.raises(StoreError) as caught:
        names(store, prefix)
    assert caught.value.code == "StoreMisused"


def test_listing_is_in_the_order_of_names(store: Store) -> None:
    wanted = [
        "a-b",
        "a.b",
        "a/b",
        "a/b-c/d",
        "a/b.c",
        "a0",
        "a/B",
        "aa/1",
        "ab",
        "b/c/d/e",
        "b/c/d-e",
        "points/1",
        "A/x",
    ]
    for name in wanted:
        store.put(name, [name.encode()])
    assert names(store) == sorted(wanted)
    for prefix in ("a", "a/", "a/b", "a/b-", "b/c/d", "b/c/d/", "points/", "nothing", "nothing/", "a-b", "a-b/", "A"):
        assert names(store, prefix) == sorted(name for name in wanted if name.startswith(prefix)), prefix
    assert {each.name: each.size for each in store.listing()} == {name: len(name) for name in wanted}


def test_a_listing_of_many(store: Store) -> None:
    """More than one answer of a server holds."""
    wanted = [f"media/{number % 7}/{number:05d}" for number in range(1203)]
    together(8, lambda own: [store.put(name, [b"x"]) for name in wanted[own::8]])
    assert names(store) == sorted(wanted)
    assert names(store, "media/3/") == sorted(name for name in wanted if name.startswith("media/3/"))
    store.delete(wanted[:1101])
    assert names(store) == sorted(wanted[1101:])


def test_delete(store: Store) -> None:
    for name in ("a/1", "a/2", "b"):
        store.put(name, [b"x"])
    store.delete(["a/1", "nothing", "b"])
    assert names(store) == ["a/2"]
    with pytest.raises(NoSuchObject):
        read(store, "a/1")
    store.delete([])
    store.delete(iter(["a/2", "a/2"]))
    assert names(store) == []


def test_times_are_known(store: Store) -> None:
    store.put("x", [b"x"])
    [listed] = store.listing()
    for modified in (listed.modified, store.head("x").modified):
        assert modified is not None
        assert abs(modified - datetime.now(UTC)) < timedelta(minutes=5)


def test_many_threads(store: Store) -> None:
    def work(own: int) -> None:
        for number in range(6):
            data = noise(os.urandom(1)[0] * 1000 + (9 * MIB if number == 3 else 0), own * 10 + number)
            store.put(f"media/{own}/{number}", in_pieces(data, 100_000))
            assert read(store, f"media/{own}/{number}") == data

    together(6, work)
    assert len(names(store, "media/")) == 36


def test_sweep_of_a_clean_store(store: Store) -> None:
    store.put("x", [b"x"])
    assert store.sweep() == 0
    assert names(store) == ["x"]


def test_check_finds_each_protection(store: Store) -> None:
    found = {each.what: each for each in store.check()}
    assert set(found) >= {"versions", "lifecycle", "object lock", "encryption at rest", "write-once names"}
    assert {each.state for each in found.values()} <= {"on", "off", "unsupported"}
    assert all(each.text for each in found.values())
    assert names(store) == [], "the check left something"


def together(number: int, work: Callable[[int], object]) -> None:
    """Run `work` in so many threads, and raise what one of them raised."""
    faults: list[BaseException] = []

    def run(own: int) -> None:
        try:
            work(own)
        except BaseException as error:
            faults.append(error)

    threads = [threading.Thread(target=run, args=(own,)) for own in range(number)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    if faults:
        raise faults[0]
