"""A store that is a bucket of any S3 server, below a prefix."""

from __future__ import annotations

import email.utils
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any

from backups.engine.stores import buckets
from backups.engine.stores.base import Finding, NoSuchObject, Stored
from backups.engine.stores.connection import Bucket, Connection, NothingSet, NotSupported
from backups.engine.stores.downloads import Downloads
from backups.engine.stores.memory import TOTAL, Memory
from backups.engine.stores.names import check_name, check_prefix, is_name, misused
from backups.engine.stores.uploads import Uploads, unquoted

WORKERS = 8
STALE = timedelta(days=1)
"""An upload whose last part is older is a dead writer's."""
_AT_ONCE = 1000


class S3Store:
    """A bucket below its prefix. `memory` bounds what all of its calls together hold, in bytes.

    A put's pieces may not wait for another put of the same store: large ones wait for each other's memory.
    """

    def __init__(self, name: str, where: Bucket, *, memory: int = TOTAL, stale: timedelta = STALE) -> None:
        self._name = name
        self._where = replace(where, prefix=check_name(where.prefix) if where.prefix else "")
        self._stale = stale
        self._connection = Connection(self._where, name, connections=4 * WORKERS)
        self._threads = ThreadPoolExecutor(WORKERS, thread_name_prefix=f"store-{name}")
        shared = Memory(memory)
        self._uploads = Uploads(self._connection, shared, self._threads)
        self._downloads = Downloads(self._connection, shared, self._threads)

    def __repr__(self) -> str:
        return f"S3Store({self._name!r}, {self._where.bucket!r}, prefix={self._where.prefix!r})"

    @property
    def name(self) -> str:
        return self._name

    def close(self) -> None:
        """End the threads and the idle connections. Waits for what is on its way."""
        self._threads.shutdown(cancel_futures=True)
        self._connection.close()

    def put(self, name: str, pieces: Iterable[bytes | memoryview]) -> Stored:
        return self._uploads.put(check_name(name), pieces)

    def get(self, name: str, *, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        check_name(name)
        if offset < 0 or (length is not None and length < 0):
            raise misused("A part of an object begins at 0 or later, and has no negative length.")
        return self._downloads.get(name, offset, length)

    def head(self, name: str) -> Stored:
        found = self._connection.head(check_name(name))
        return Stored(name, found["ContentLength"], mark=unquoted(found), modified=_utc(found.get("LastModified")))

    def listing(self, prefix: str = "") -> Iterator[Stored]:
        """Return all objects whose names begin with `prefix`, in the order of their names."""
        return self._pages(self._connection.key(check_prefix(prefix)))

    def delete(self, names: Iterable[str]) -> None:
        rest = (check_name(name) for name in names)
        while some := list(islice(rest, _AT_ONCE)):
            self._delete(some)

    def erase(self, names: Iterable[str]) -> None:
        """Remove objects with every older version of them. Asks for each name, so it is for few."""
        for name in names:
            versions = list(self._versions(check_name(name)))
            if not versions:
                self._delete([name])
            for begin in range(0, len(versions), _AT_ONCE):
                self._delete_objects(versions[begin : begin + _AT_ONCE])

    def sweep(self) -> int:
        """Abort uploads in which nothing was done for a day, and return how many those were.

        An agent may not list a bucket's uploads: it is `StoreDenied`, and Hearth sweeps.
        """
        try:
            found = list(self._unfinished())
        except (NotSupported, NothingSet):
            return 0
        swept = 0
        for upload, now in found:
            if self._last_touched(upload) < now - self._stale:
                self._abort(upload)
                swept += 1
        return swept

    def check(self) -> list[Finding]:
        supported = self._uploads.write_once.supported()
        return [*buckets.check(self._connection), buckets.write_once(supported=supported)]

    def _pages(self, prefix: str) -> Iterator[Stored]:
        more: dict[str, Any] = {}
        while True:
            page = self._connection.call("list_objects_v2", "read", Prefix=prefix, **more)
            for each in page.get("Contents", ()):
                if is_name(name := self._connection.named(each["Key"])):
                    yield Stored(name, each["Size"], mark=unquoted(each), modified=_utc(each.get("LastModified")))
            if not page.get("IsTruncated"):
                return
            more = {"ContinuationToken": page["NextContinuationToken"]}

    def _delete(self, names: list[str]) -> None:
        try:
            self._delete_objects([{"Key": self._connection.key(name)} for name in names])
        except NotSupported:
            for name in names:
                self._connection.call("delete_object", "removed", name=name)

    def _delete_objects(self, objects: list[dict[str, str]]) -> None:
        answer = self._connection.call("delete_objects", "removed", Delete={"Objects": objects, "Quiet": True})
        faults = [str(each.get("Code")) for each in answer.get("Errors", ())]
        faults = [code for code in faults if code not in {"NoSuchKey", "NoSuchVersion"}]
        if not faults:
            return
        if {"AccessDenied", "InvalidRequest", "ObjectLocked"} & set(faults):
            reason = "it may not be: these credentials are not allowed to, or it is locked for some time"
            raise self._connection.fault("StoreDenied", "removed", reason=reason)
        raise self._connection.fault("StoreAway", "removed", faults[0])

    def _versions(self, name: str) -> Iterator[dict[str, str]]:
        """Yield all versions of an object and the marks of its removals; none where the server keeps none."""
        more: dict[str, Any] = {}
        key = self._connection.key(name)
        while True:
            try:
                page = self._connection.call("list_object_versions", "read", Prefix=key, **more)
            except (NotSupported, NothingSet):
                return
            for each in [*page.get("Versions", ()), *page.get("DeleteMarkers", ())]:
                if each["Key"] == key:
                    yield {"Key": key, "VersionId": each["VersionId"]}
            if not page.get("IsTruncated"):
                return
            more = {"KeyMarker": page["NextKeyMarker"], "VersionIdMarker": page["NextVersionIdMarker"]}

    def _unfinished(self) -> Iterator[tuple[dict[str, Any], datetime]]:
        """Yield the uploads that were begun and not ended, each with the server's time."""
        more: dict[str, Any] = {}
        prefix = self._connection.key("")
        while True:
            page = self._connection.call("list_multipart_uploads", "read", Prefix=prefix, **more)
            told = page["ResponseMetadata"]["HTTPHeaders"].get("date")
            now = email.utils.parsedate_to_datetime(told) if told else datetime.now(UTC)
            for each in page.get("Uploads", ()):
                yield each, now
            if not page.get("IsTruncated"):
                return
            more = {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]}

    def _last_touched(self, upload: dict[str, Any]) -> datetime:
        touched: datetime = upload["Initiated"]
        more: dict[str, Any] = {}
        while True:
            name = self._connection.named(upload["Key"])
            try:
                page = self._connection.call("list_parts", "read", name=name, UploadId=upload["UploadId"], **more)
            except NoSuchObject:
                return datetime.max.replace(tzinfo=UTC)  # it ended a moment ago
            touched = max([touched, *(each["LastModified"] for each in page.get("Parts", ()))])
            if not page.get("IsTruncated"):
                return touched
            more = {"PartNumberMarker": page["NextPartNumberMarker"]}

    def _abort(self, upload: dict[str, Any]) -> None:
        name = self._connection.named(upload["Key"])
        try:
            self._connection.call("abort_multipart_upload", "removed", name=name, UploadId=upload["UploadId"])
        except NoSuchObject:
            return


def _utc(moment: datetime | None) -> datetime | None:
    return moment.astimezone(UTC) if moment else None
