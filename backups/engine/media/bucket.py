"""Media in a bucket, as synapse-s3-storage-provider leaves them: each file under its path in the media store.

The bucket is any `Store` below the provider's `prefix`. A listing tells every file with its ETag, so nothing else is
asked for what has not changed; 1,000 files cost one request. Imports no Django.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from itertools import groupby

from backups.engine.media.errors import MediaError
from backups.engine.media.scan import KEPT, MOST_IN_GROUP, Group, Look, Opened, Seen
from backups.engine.stores.base import NoSuchObject, Store, Stored, StoreError


class BucketSource:
    """Synapse's media in a bucket. Its credentials need not be able to write."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def scan(self, known: Callable[[str], Group | None], turn: int) -> Iterator[Look | str]:  # noqa: ARG002 (Source's)
        for top in KEPT:
            try:
                for name, found in groupby(self._store.listing(f"{top}/"), lambda each: _group(each.name)):
                    files: dict[str, Seen] = {}
                    left_out = 0
                    for each in found:
                        if name and len(files) < MOST_IN_GROUP:
                            files[each.name] = _seen(each)
                        else:
                            left_out += 1
                    if name:
                        yield Look(name, files, Group(folders={}, young={}), left_out)
            except StoreError as error:
                raise self._fault(error) from None

    @contextlib.contextmanager
    def open(self, path: str) -> Iterator[Opened]:
        try:
            found = self._store.head(path)
        except NoSuchObject:
            raise FileNotFoundError(path) from None
        except StoreError as error:
            raise self._fault(error) from None
        yield _Object(self, self._store, path, _seen(found))

    def _fault(self, error: StoreError) -> MediaError:
        return MediaError(
            f"The media's bucket can't be read: {error} New media are not backed up until it can; what is stored stays."
        )


class _Object:
    def __init__(self, source: BucketSource, store: Store, path: str, seen: Seen) -> None:
        self.seen = seen
        self._source = source
        self._store = store
        self._path = path

    def pieces(self) -> Iterator[bytes]:
        try:
            yield from self._store.get(self._path, length=self.seen.size)
        except NoSuchObject:
            raise FileNotFoundError(self._path) from None
        except StoreError as error:
            raise self._source._fault(error) from None  # noqa: SLF001 (its own)

    def changed(self) -> bool:
        """An object never changes under one ETag, and a store tells when it did while it was read."""
        return False


def _group(name: str) -> str:
    """Return `local_content/ab` of a file's path; empty where Synapse would not put one."""
    parts = name.split("/")
    return "/".join(parts[:2]) if len(parts) > 2 else ""


def _seen(found: Stored) -> Seen:
    # The ETag alone where there is one: stores tell the same object's time in other fractions, and rclone moves it when
    # it has written the object through.
    since = 0 if found.mark or found.modified is None else int(found.modified.timestamp()) * 10**9
    return Seen(found.size, since, found.mark)
