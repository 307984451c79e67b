"""Media that lie in a bucket, of each kind of store: what is there comes back, what is unchanged costs a listing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from backups.engine.media import packs
from backups.engine.media.bucket import BucketSource
from backups.engine.media.errors import MediaError
from backups.engine.stores.base import Store
from backups.engine.stores.folder import FolderStore
from tests.backups.engine.media import Backups


@pytest.fixture
def backups(tmp_path: Path) -> Backups:
    return Backups(tmp_path, FolderStore("far", tmp_path / "backups", make=True), tmp_path)


def test_it_brings_back_every_file_and_stores_nothing_twice(store: Store, backups: Backups) -> None:
    files = {f"local_content/aB/cd/{number:020d}": os.urandom(3000 + number) for number in range(5)}
    files |= {"local_content/xY/zz/large": os.urandom(packs.ALONE + 3)}
    files |= {"local_thumbnails/aB/cd/00/32-32-image-png-crop": b"small " * 100}
    for name, data in {**files, "remote_content/example.org/ab/cd/x": b"theirs", "local_content/strange": b"?"}.items():
        store.put(name, [data])
    media = backups.media(source=BucketSource(store))

    first = media.run()

    assert backups.restored(first.ref) == files
    backups.keys.away = True
    assert media.run(full=True).ref == first.ref
    backups.keys.away = False
    store.delete(["local_content/xY/zz/large"])
    store.put("local_content/aB/ee/new", [b"new"])
    second = media.run()
    assert set(backups.restored(second.ref)) == set(files) - {"local_content/xY/zz/large"} | {"local_content/aB/ee/new"}


def test_a_bucket_that_is_away_changes_nothing(backups: Backups, tmp_path: Path) -> None:
    bucket = FolderStore("bucket", tmp_path / "bucket", make=True)
    bucket.put("local_content/aB/cd/x", [b"kept"])
    first = backups.media(source=BucketSource(bucket)).run()
    (tmp_path / "bucket").rename(tmp_path / "away")

    with pytest.raises(MediaError, match="bucket can't be read"):
        backups.media(source=BucketSource(FolderStore("bucket", tmp_path / "bucket"))).run()

    assert backups.restored(first.ref) == {"local_content/aB/cd/x": b"kept"}
