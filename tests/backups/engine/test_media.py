"""Media: what was there comes back, nothing is stored twice, and whatever happens meanwhile is right next time."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from backups.engine.media import packs, run
from backups.engine.media.errors import MediaError, Stopped
from backups.engine.media.scan import DiskSource
from backups.engine.stores.base import Stored, StoreError
from backups.engine.stores.folder import FolderStore
from tests.backups.engine.media import Backups, Files


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path / "media")


@pytest.fixture
def backups(tmp_path: Path, files: Files) -> Backups:
    return Backups(tmp_path, FolderStore("folder", tmp_path / "store", make=True), files.root)


def test_it_brings_back_every_file(files: Files, backups: Backups) -> None:
    for size in (0, 1, 100, 70_000, 3 << 20):
        files.add(os.urandom(size), thumbnails=3)
        files.add(b"text that shrinks " * size)
    files.add(os.urandom(packs.ALONE + 12_345))
    files.add(b"a large one that shrinks " * (packs.ALONE // 20))

    found = backups.media().run()

    assert backups.restored(found.ref) == files.all()
    assert found.files == len(files.all())
    assert found.bytes == sum(map(len, files.all().values()))


def test_only_what_the_server_alone_has_is_kept(files: Files, backups: Backups) -> None:
    kept = files.add(b"ours")
    files.write("remote_content/example.org/ab/cd/x", b"theirs")
    files.write("url_cache/2026-01-01/x", b"a preview")

    assert set(backups.restored(backups.media().run().ref)) == {kept}


def test_an_unchanged_run_stores_nothing_and_asks_for_no_key(files: Files, backups: Backups) -> None:
    files.add(os.urandom(1000), thumbnails=2)
    files.age()
    media = backups.media()
    first = media.run()
    before = [each.name for each in backups.store.listing()]
    backups.keys.away = True

    again = [media.run(), media.run(full=True), media.run(close=True), backups.media().run()]

    assert all(each.ref == first.ref and not each.stored for each in again)
    assert [each.name for each in backups.store.listing()] == before


def test_a_new_file_costs_itself_and_an_index_of_it(files: Files, backups: Backups) -> None:
    for _ in range(300):
        files.add(os.urandom(500))
    files.age()
    media = backups.media()
    first = media.run()
    files.add(os.urandom(5000))

    second = media.run()

    assert len(backups.chain(second.ref)) == 2
    assert second.new_bytes < first.new_bytes / 5
    assert backups.restored(second.ref) == files.all()
    assert len(backups.restored(first.ref)) == 300


def test_the_same_contents_are_stored_once(files: Files, backups: Backups) -> None:
    small, large = os.urandom(5000), os.urandom(packs.ALONE + 1)
    for _ in range(3):
        files.add(small)
        files.add(large)
    media = backups.media()
    media.run()
    files.add(large)
    files.add(small)
    found = media.run()

    stored = sum(each.size for each in backups.store.listing() if each.name in backups.contents())
    assert stored < len(small) + len(large) + 10_000
    assert backups.restored(found.ref) == files.all()


def test_removed_files_stay_in_the_indexes_of_before(files: Files, backups: Backups) -> None:
    gone, kept = files.add(b"gone"), files.add(b"kept")
    media = backups.media()
    first = media.run()
    (files.root / gone).unlink()

    second = media.run(close=True)

    assert set(backups.restored(first.ref)) == {gone, kept}
    assert set(backups.restored(second.ref)) == {kept}


def test_a_file_that_is_changed_in_place_is_found_again(files: Files, backups: Backups) -> None:
    path = files.add(b"first")
    files.age()
    media = backups.media()
    media.run()
    files.write(path, b"second, in the same folder")  # the folder's time stays
    os.utime(files.root / path)

    for _ in range(run._EVERY):
        found = media.run(close=True)
        if found.stored:
            break

    assert backups.restored(found.ref) == files.all()


def test_a_growing_file_is_whole_in_the_next_run(files: Files, backups: Backups) -> None:
    path = files.add(b"first half")
    media = backups.media()
    assert backups.restored(media.run().ref) == {path: b"first half"}
    files.write(path, b"first half and the rest")

    assert backups.restored(media.run().ref) == {path: b"first half and the rest"}


class Meanwhile(DiskSource):
    """Does something to the files between the look at them and their reading."""

    def __init__(self, root: Path, act: Callable[[], None]) -> None:
        super().__init__(root)
        self._act = act

    def scan(self, known: object, turn: int) -> Iterator[object]:  # type: ignore[override]
        found = list(super().scan(known, turn))  # type: ignore[arg-type]
        self._act()
        yield from found


def test_files_that_vanish_or_grow_meanwhile_are_right_in_the_next_run(files: Files, backups: Backups) -> None:
    gone, grows, kept = files.add(b"gone"), files.add(b"grows"), files.add(b"kept")
    large = files.add(os.urandom(packs.ALONE + 5))
    files.age()

    def act() -> None:
        (files.root / gone).unlink()
        files.write(grows, b"grown" * 1000)
        files.write(large, b"cut short")

    backups.media(source=Meanwhile(files.root, act)).run()
    found = backups.media().run()

    assert backups.restored(found.ref) == files.all()
    assert set(files.all()) == {grows, kept, large}


def test_links_and_pipes_are_never_followed(files: Files, backups: Backups, tmp_path: Path) -> None:
    kept = files.add(b"kept")
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "key").write_text("not the server's business")
    (files.root / "local_content" / "zz").symlink_to(secret)
    group = files.root / "/".join(kept.split("/")[:2])
    (group / "link").symlink_to(secret)
    (group / "file").symlink_to(secret / "key")
    os.mkfifo(group / "pipe")

    found = backups.media().run()

    assert backups.restored(found.ref) == {kept: b"kept"}
    assert found.left_out == 3


def test_a_folder_that_becomes_a_link_between_look_and_reading_is_not_followed(
    files: Files, backups: Backups, tmp_path: Path
) -> None:
    path = files.add(b"ours")
    elsewhere = tmp_path / "elsewhere"

    def act() -> None:
        folder = (files.root / path).parent
        shutil.copytree(folder, elsewhere)
        (elsewhere / folder.name / Path(path).name).parent.mkdir(exist_ok=True)
        shutil.rmtree(folder)
        folder.symlink_to(elsewhere)

    found = backups.media(source=Meanwhile(files.root, act)).run()

    assert backups.restored(found.ref) == {}


def test_an_empty_folder_where_files_were_changes_nothing(files: Files, backups: Backups) -> None:
    files.add(b"kept")
    media = backups.media()
    first = media.run()
    shutil.rmtree(files.root)
    with pytest.raises(MediaError, match="can't be read"):
        media.run()
    files.root.mkdir()

    with pytest.raises(MediaError, match="Is its volume mounted"):
        media.run()

    assert backups.restored(first.ref)


def test_a_server_without_media_has_an_empty_index(backups: Backups) -> None:
    found = backups.media().run(full=True)

    assert (found.files, found.bytes, backups.restored(found.ref)) == (0, 0, {})


def test_a_restore_point_gets_a_full_index(files: Files, backups: Backups) -> None:
    for _ in range(50):
        files.add(os.urandom(300))
    media = backups.media()
    media.run()
    files.add(b"one more")
    assert len(backups.chain(media.run().ref)) == 2
    before = backups.contents()

    found = media.run(full=True)

    assert len(backups.chain(found.ref)) == 1
    assert backups.contents() == before
    assert backups.restored(found.ref) == files.all()


def test_a_chain_is_never_long(files: Files, backups: Backups, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "MOST_CHAIN", 3)
    for _ in range(200):
        files.add(os.urandom(100))
    files.age()
    media = backups.media()
    lengths = []
    for _ in range(9):
        files.add(os.urandom(10))
        lengths.append(len(backups.chain(media.run().ref)))

    assert max(lengths) == 4
    assert lengths.count(1) >= 2


def test_a_lost_state_stores_nothing_twice(files: Files, backups: Backups) -> None:
    for _ in range(20):
        files.add(os.urandom(2000))
    files.add(os.urandom(packs.ALONE + 1))
    backups.media().run(full=True)
    before = backups.contents()
    shutil.rmtree(backups.state)

    found = backups.media().run()

    assert found.stored
    assert backups.contents() == before
    assert backups.restored(found.ref) == files.all()


@pytest.mark.parametrize("damage", [b"", b"not a database at all" * 100])
def test_a_broken_state_counts_as_lost(files: Files, backups: Backups, damage: bytes) -> None:
    files.add(b"kept")
    backups.media().run()
    for each in backups.state.iterdir():
        each.unlink()
    (backups.state / "media.sqlite").write_bytes(damage)

    assert backups.restored(backups.media().run().ref) == files.all()


def test_a_state_from_an_older_disk_is_not_trusted(files: Files, backups: Backups, tmp_path: Path) -> None:
    files.add(b"first")
    backups.media().run()
    shutil.copytree(backups.state, tmp_path / "older")
    files.add(b"second")
    newest = backups.media().run()
    shutil.rmtree(backups.state)
    shutil.move(tmp_path / "older", backups.state)
    files.add(b"third")

    found = backups.media().run()

    assert found.ref.name > newest.ref.name
    assert backups.restored(found.ref) == files.all()


def test_a_store_that_was_emptied_gets_everything_anew(files: Files, backups: Backups) -> None:
    files.add(os.urandom(3000))
    media = backups.media()
    media.run()
    backups.store.delete([each.name for each in backups.store.listing()])

    assert backups.restored(media.run().ref) == files.all()


def test_a_lost_object_is_stored_again_when_that_is_known(files: Files, backups: Backups) -> None:
    for _ in range(5):
        files.add(os.urandom(3000))
    media = backups.media()
    media.run()
    lost = backups.contents()
    backups.store.delete(lost)

    assert media.forget(lost) == 5
    assert backups.restored(media.run().ref) == files.all()


class Failing(FolderStore):
    """Breaks the n-th put, at its end."""

    fail_at = 0
    code, again = "StoreAway", True

    def put(self, name: str, pieces: Iterable[bytes | memoryview]) -> Stored:
        type(self).fail_at -= 1
        if self.fail_at == 0:
            for _ in pieces:
                pass
            raise StoreError("It does not answer (a test).", code=self.code, retry=self.again)
        return super().put(name, pieces)


@pytest.mark.parametrize("number", range(1, 8))
def test_a_store_that_fails_anywhere_costs_nothing_but_the_time(
    files: Files, backups: Backups, tmp_path: Path, number: int
) -> None:
    data = os.urandom(packs.ALONE + 7)
    for _ in range(2):
        files.add(data)
        files.add(os.urandom(4000))
    backups.vault = type(backups.vault)(
        store=Failing("folder", tmp_path / "store", make=True), organisation="alice-and-friends", server="home"
    )
    Failing.fail_at = number
    media = backups.media(uploads=1)
    try:
        media.run()
    except StoreError:
        files.add(b"more meanwhile")
    Failing.fail_at = 0

    found = media.run(full=True)

    assert backups.restored(found.ref) == files.all()


def test_a_run_that_is_stopped_ends_soon_and_counts_for_nothing(files: Files, backups: Backups) -> None:
    for _ in range(20):
        files.add(os.urandom(2000))
    with pytest.raises(Stopped):
        backups.media(stopped=lambda: True).run()

    assert backups.restored(backups.media().run().ref) == files.all()


def test_a_long_first_run_writes_down_how_far_it_is(
    files: Files, backups: Backups, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "BATCH_FILES", 10)
    for _ in range(45):
        files.add(os.urandom(600))
    store = Failing("folder", tmp_path / "store", make=True)
    backups.vault = type(backups.vault)(store=store, organisation="alice-and-friends", server="home")
    Failing.fail_at, Failing.again = 15, False
    with pytest.raises(StoreError):
        backups.media().run()
    Failing.fail_at, Failing.again = 0, True
    before = len(backups.contents())
    assert before >= 2

    found = backups.media().run()

    assert backups.restored(found.ref) == files.all()
    stored = sum(each.size for each in backups.store.listing() if each.name in backups.contents())
    assert stored < 45 * 600 + 10 * 600 + 20_000


KILLED = """
import os, sys
from pathlib import Path
from backups.engine.stores.folder import FolderStore
from tests.backups.engine.media import Backups
from tests.backups.keys import FileKeys
root = Path(sys.argv[1])
left = int(sys.argv[2])
link = os.link
def counted(*words, **options):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), 9)
    link(*words, **options)
os.link = counted
backups = Backups(root, FolderStore("folder", root / "store", make=True), root / "media")
backups.keys = FileKeys(root / "keys")
backups._stretch = type(backups._stretch)(backups.keys)
backups.media().run()
"""


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_kill_9_before_any_object_leaves_nothing_wrong(
    files: Files, backups: Backups, tmp_path: Path, number: int
) -> None:
    files.add(os.urandom(packs.ALONE + 7))
    files.add(os.urandom(4000))
    words = [sys.executable, "-c", KILLED, str(tmp_path), str(number)]
    killed = subprocess.run(words, env={**os.environ, "PYTHONPATH": "platform:."}, check=False, timeout=60)
    assert killed.returncode == -signal.SIGKILL
    files.add(b"more meanwhile")

    found = backups.media().run()

    assert backups.restored(found.ref) == files.all()
