"""What only a folder has: disks that are full, read-only or missing, links, killed writers."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from backups.engine.stores.base import NoSuchObject, StoreError
from backups.engine.stores.folder import MARK, FolderStore
from tests.left_out import leave_out

WRITER = """
import sys, time
from pathlib import Path
from backups.engine.stores.folder import FolderStore
def pieces():
    yield b"x" * (1 << 20)
    print("half", flush=True)
    time.sleep(300)
FolderStore("a", Path(sys.argv[1])).put("points/1", pieces())
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def store(folder: Path) -> FolderStore:
    made = FolderStore("near", folder, make=True)
    made.check()
    return made


def age(folder: Path) -> None:
    for path in (folder / MARK).iterdir():
        os.utime(path, (time.time() - 3600,) * 2)


def unfinished(folder: Path) -> list[str]:
    return [path.name for path in (folder / MARK).iterdir()]


def test_a_killed_writer_leaves_nothing_to_see_and_is_swept(store: FolderStore, folder: Path) -> None:
    argv, environment = [sys.executable, "-c", WRITER, str(folder)], os.environ | {"PYTHONPATH": "platform:."}
    with subprocess.Popen(argv, stdout=subprocess.PIPE, env=environment) as writer:
        assert writer.stdout is not None
        said = writer.stdout.readline()
        age(folder)
        swept = store.sweep()
        writer.send_signal(signal.SIGKILL)
    assert said == b"half\n"
    assert swept == 0, "a living writer's file was taken away"
    assert list(store.listing()) == []
    assert store.sweep() == 1
    assert unfinished(folder) == []
    assert store.put("points/1", [b"new"]).size == 3


def test_a_young_leftover_stays(store: FolderStore, folder: Path) -> None:
    """Between a file's making and its lock is a moment."""
    (folder / MARK / "abc").touch()
    assert store.sweep() == 0
    age(folder)
    assert store.sweep() == 1


def test_a_full_disk(store: FolderStore, folder: Path, tiny_disk: Path) -> None:
    full = FolderStore("tiny", tiny_disk / "backups", make=True)
    full.put("wal/1", [b"x" * 100_000])
    with pytest.raises(StoreError, match=r"The store tiny .* its disk is full. Free some space") as caught:
        full.put("wal/2", (b"x" * 65_536 for _ in range(1000)))
    assert (caught.value.code, caught.value.retry) == ("StoreFull", False)
    assert [each.name for each in full.listing()] == ["wal/1"]
    assert unfinished(tiny_disk / "backups") == []
    assert full.put("wal/2", [b"small"]).size == 5


def test_a_read_only_disk(tiny_disk: Path) -> None:
    FolderStore("tiny", tiny_disk, make=True).put("wal/1", [b"kept"])
    subprocess.run(["mount", "-o", "remount,ro", str(tiny_disk)], check=True)
    store = FolderStore("tiny", tiny_disk)
    with pytest.raises(StoreError, match=r"its disk is read-only\. Mount it for writing") as caught:
        store.put("wal/2", [b"x"])
    assert caught.value.code == "StoreDenied"
    assert b"".join(store.get("wal/1")) == b"kept"
    with pytest.raises(StoreError, match="read-only"):
        store.delete(["wal/1"])


def test_a_disk_that_is_not_mounted_is_no_empty_store(store: FolderStore, folder: Path, tmp_path: Path) -> None:
    store.put("wal/1", [b"kept"])
    disk = FolderStore("near", folder)
    folder.rename(tmp_path / "unplugged")
    for empty in (False, True):
        if empty:
            folder.mkdir()
        calls = (
            lambda: list(disk.listing()),
            lambda: list(disk.get("wal/1")),
            lambda: disk.head("wal/1"),
            lambda: disk.put("wal/2", [b"x"]),
            lambda: disk.delete(["wal/1"]),
            disk.check,
            disk.sweep,
        )
        for call in calls:
            with pytest.raises(StoreError, match=r"Is its disk mounted\?") as caught:
                call()
            assert caught.value.code == "StoreMissing"
    assert list(folder.iterdir()) == []
    folder.rmdir()
    (tmp_path / "unplugged").rename(folder)
    assert b"".join(disk.get("wal/1")) == b"kept"


def test_links_are_not_followed(store: FolderStore, folder: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_bytes(b"secret")
    (folder / "wal").symlink_to(outside)
    (folder / "points").mkdir()
    (folder / "points" / "1").symlink_to(outside / "secret")
    assert list(store.listing()) == []
    for name in ("wal/secret", "points/1"):
        with pytest.raises(StoreError):
            list(store.get(name))
        with pytest.raises(StoreError):
            store.head(name)
    with pytest.raises(StoreError) as caught:
        store.put("wal/2", [b"x"])
    assert caught.value.code == "StoreMisused"
    store.delete(["wal/secret", "points/1"])
    assert [path.read_bytes() for path in outside.iterdir()] == [b"secret"]


def test_what_is_no_object_is_not_listed(store: FolderStore, folder: Path) -> None:
    (folder / "lost+found").mkdir()
    (folder / ".hidden").touch()
    (folder / "folder").mkdir()
    os.mkfifo(folder / "pipe")
    assert list(store.listing()) == []
    for name in ("folder", "pipe"):
        with pytest.raises(NoSuchObject):
            store.head(name)
    with pytest.raises(NoSuchObject):
        list(store.get("pipe"))


def test_a_folder_emptied_at_the_same_moment(store: FolderStore) -> None:
    """`delete` removes the folder that it emptied, and `put` needs it."""
    faults: list[BaseException] = []

    def churn(own: int) -> None:
        try:
            for number in range(60):
                store.put(f"media/ab/{own}-{number}", [b"x"])
                store.delete([f"media/ab/{own}-{number}"])
        except BaseException as error:
            faults.append(error)

    threads = [threading.Thread(target=churn, args=(own,)) for own in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert faults == []
    assert list(store.listing()) == []


def test_emptied_folders_go(store: FolderStore, folder: Path) -> None:
    store.put("media/ab/cd/1", [b"x"])
    store.put("media/ef", [b"x"])
    store.delete(["media/ab/cd/1"])
    assert [path.name for path in (folder / "media").iterdir()] == ["ef"]


def test_others_can_not_read(store: FolderStore, folder: Path) -> None:
    store.put("wal/1", [b"x"])
    assert (folder / "wal" / "1").stat().st_mode & 0o077 == 0
    assert (folder / "wal").stat().st_mode & 0o077 == 0


def test_everything_is_synced_before_put_returns(store: FolderStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file before its name, each new folder in the one above, the name at last."""
    synced: list[str] = []
    fsync, link = os.fsync, os.link

    def note(handle: int) -> None:
        synced.append(Path(f"/proc/self/fd/{handle}").readlink().name)
        fsync(handle)

    def note_link(*args: object, **options: object) -> None:
        synced.append("link")
        link(*args, **options)  # type: ignore[arg-type]  # passed on as they came

    monkeypatch.setattr(os, "fsync", note)
    monkeypatch.setattr(os, "link", note_link)
    store.put("media/ab/1", [b"x"])
    assert synced[1:] == ["store", "media", "link", "ab"]
    synced.clear()
    store.put("media/ab/2", [b"x"])
    assert synced[1:] == ["link", "ab"]


def test_a_file_system_without_locks(store: FolderStore, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    assert store.put("wal/1", [b"x"]).size == 1
    (folder / MARK / "abc").touch()
    age(folder)
    assert store.sweep() == 0
    os.utime(folder / MARK / "abc", (time.time() - 2 * 86_400,) * 2)
    assert store.sweep() == 1


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 1 MiB."""
    if os.geteuid() != 0:
        leave_out("only root can mount a small disk.")
    place = tmp_path / "tiny"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m,mode=700", "hearth-test", str(place)], check=True)
    yield place
    with contextlib.suppress(subprocess.CalledProcessError):
        subprocess.run(["umount", str(place)], check=True)
