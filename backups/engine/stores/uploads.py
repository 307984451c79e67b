"""Sending one object to a bucket: small ones by one call, others as parts, several at the same time."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import threading
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from dataclasses import dataclass, field
from mmap import mmap
from typing import Any

from backups.engine.stores.base import Stored, StoreError
from backups.engine.stores.connection import Body, Connection
from backups.engine.stores.memory import MIB, Memory
from backups.engine.stores.names import misused
from backups.engine.stores.write_once import TOKEN, WriteOnce

SMALL = 256 * 1024
"""Objects up to this size need none of the shared memory."""
IN_FLIGHT = 4
STEPS = ((2_000, 8 * MIB), (5_000, 16 * MIB), (10_000, 32 * MIB))
"""Up to which number parts have which size. S3 takes 10,000 parts, and how long a stream will be is not known."""
MOST = 224_000 * MIB
"""The largest object that fits into those parts, in bytes."""


@dataclass
class Part:
    """Bytes to send, in a buffer that is given back."""

    number: int
    data: memoryview
    last: bool
    release: Callable[[], None]


@dataclass
class Seen:
    """What was sent so far."""

    digest: Any = field(default_factory=hashlib.sha256)
    size: int = 0


class Checksums:
    """Which checksum a server checks a body by: CRC32, which it then says again; MD5 beside it until it has."""

    def __init__(self, write_once: WriteOnce) -> None:
        self._server = write_once
        self._known = False

    def of(self, data: memoryview) -> dict[str, str]:
        found = {}
        if self._server.crc32:
            found["ChecksumCRC32"] = base64.b64encode(zlib.crc32(data).to_bytes(4, "big")).decode()
        if not self._known:
            found["ContentMD5"] = base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()
        return found

    def of_upload(self) -> dict[str, str]:
        """Return what is said before the first part."""
        return {"ChecksumAlgorithm": "CRC32"} if self._server.crc32 else {}

    def answered(self, answer: dict[str, Any]) -> None:
        """Learn from an answer to a body with a CRC32."""
        self._known = self._known or "ChecksumCRC32" in answer


class Uploads:
    """Puts of one store. Its parts lie in `memory` and are sent by `threads`."""

    def __init__(self, connection: Connection, memory: Memory, threads: Executor) -> None:
        self._connection = connection
        self._memory = memory
        self._threads = threads
        self.write_once = WriteOnce(connection)
        self.checksums = Checksums(self.write_once)

    def put(self, name: str, pieces: Iterable[bytes | memoryview]) -> Stored:
        """Keep the pieces under a new name; see `Store.put`."""
        self.write_once.supported()  # what kind of checksum it takes, too
        seen = Seen()
        with contextlib.closing(_parts(pieces, self._memory, seen)) as parts:
            first = next(parts)
            if first.last:
                try:
                    mark = self._put_whole(name, first)
                finally:
                    first.release()
            else:
                Multipart(self, name).run(first, parts)
                mark = self._look(name, seen.size)
        return Stored(name, seen.size, mark=mark, sha256=seen.digest.hexdigest())

    def _look(self, name: str, size: int) -> str:
        """Return the mark of an object made of parts, as listings tell it, if it is as large as it must be."""
        found = self._connection.head(name)
        if found["ContentLength"] != size:
            raise StoreError(
                f"The store has {found['ContentLength']} bytes of {name}, and {size} were sent. No backup may name it. "
                "Look at the store, and put it under another name.",
                code="StoreDamaged",
                retry=False,
            )
        return unquoted(found)

    def _put_whole(self, name: str, part: Part) -> str:
        token = os.urandom(16).hex()

        def send(**condition: str) -> dict[str, Any]:
            options = condition | self.checksums.of(part.data)
            return self._connection.call(
                "put_object", "written", name=name, Body=Body(part.data), Metadata={TOKEN: token}, **options
            )

        answer = self.write_once.guarded(name, token, send)
        self.checksums.answered(answer)
        return unquoted(answer)

    def send_part(self, name: str, upload: str, part: Part, body: Body) -> dict[str, Any]:
        """Send one part and return what completing needs of it."""
        checksums = self.checksums.of(part.data)
        answer = self._connection.call(
            "upload_part", "written", name=name, UploadId=upload, PartNumber=part.number, Body=body, **checksums
        )
        self.checksums.answered(answer)
        entry = {"PartNumber": part.number, "ETag": answer["ETag"]}
        if "ChecksumCRC32" in answer:
            entry["ChecksumCRC32"] = answer["ChecksumCRC32"]
        return entry

    @property
    def connection(self) -> Connection:
        return self._connection

    @property
    def threads(self) -> Executor:
        return self._threads


class Multipart:
    """One object sent in parts. Either it is completed, or it is aborted and nothing is seen of it."""

    def __init__(self, uploads: Uploads, name: str) -> None:
        self._uploads = uploads
        self._call = uploads.connection.call
        self._name = name
        self._token = os.urandom(16).hex()
        self._upload = ""
        self._sending: dict[Future[dict[str, Any]], Body] = {}
        self._sent: list[dict[str, Any]] = []

    def run(self, first: Part, others: Iterator[Part]) -> None:
        """Send all parts and put them together."""
        try:
            self._begin()
        except BaseException:
            first.release()
            raise
        try:
            self._send(first)
            for part in others:
                self._send(part)
            self._collect(down_to=0)
            self._sent.sort(key=lambda entry: int(entry["PartNumber"]))
            self._uploads.write_once.guarded(self._name, self._token, self._complete, parts=True)
        except BaseException:
            self._abort()
            raise

    def _begin(self) -> None:
        options: dict[str, Any] = {"Metadata": {TOKEN: self._token}} | self._uploads.checksums.of_upload()
        self._upload = self._call("create_multipart_upload", "written", name=self._name, **options)["UploadId"]

    def _send(self, part: Part) -> None:
        body = Body(part.data)
        try:
            future = self._uploads.threads.submit(self._uploads.send_part, self._name, self._upload, part, body)
        except RuntimeError:  # the store was closed meanwhile
            part.release()
            raise misused(f"The store was closed while {self._name} was written. Nothing was kept.") from None
        future.add_done_callback(lambda _: part.release())
        self._sending[future] = body
        self._collect(down_to=IN_FLIGHT - 1)

    def _collect(self, *, down_to: int) -> None:
        """Wait until so few parts are on their way; raise what one of them raised."""
        while True:
            for future in [each for each in self._sending if each.done()]:
                del self._sending[future]
                self._sent.append(future.result())
            if len(self._sending) <= down_to:
                return
            wait(self._sending, return_when=FIRST_COMPLETED)

    def _complete(self, **condition: str) -> dict[str, Any]:
        return self._call(
            "complete_multipart_upload",
            "written",
            name=self._name,
            UploadId=self._upload,
            MultipartUpload={"Parts": self._sent},
            **condition,
        )

    def _abort(self) -> None:
        """Let go of what was sent. What can't be told to the server now is swept later."""
        for future, body in self._sending.items():
            future.cancel()
            body.stop()
        wait(self._sending)  # a part that arrives after the abort would stay
        with contextlib.suppress(StoreError):
            self._call("abort_multipart_upload", "written", name=self._name, UploadId=self._upload)


def part_size(number: int) -> int:
    """Return how large the part of that number is, from 1 on. Raise `StoreError` beyond the last."""
    for upto, size in STEPS:
        if number <= upto:
            return size
    raise misused("The object is larger than a store takes. Nothing was kept. Put it as several objects.")


def unquoted(answer: dict[str, Any]) -> str:
    """Return an answer's ETag as listings are compared by."""
    return str(answer.get("ETag", "")).strip('"')


def _parts(pieces: Iterable[bytes | memoryview], memory: Memory, seen: Seen) -> Generator[Part, None, None]:
    """Yield the pieces as parts, the last one told as such; there is always one.

    A piece is used up before the next one is asked for, since it may lie in the same bytes.
    """
    source = _Source(pieces, seen)
    start = source.small()
    if start is not None:
        yield Part(1, memoryview(start), last=True, release=lambda: None)
        return
    number, last = 0, False
    while not last:
        number += 1
        buffer = memory.take(part_size(number))
        release = _once(memory, buffer)
        try:
            filled = source.fill(memoryview(buffer))
            last = not source.more()
        except BaseException:
            release()
            raise
        yield Part(number, memoryview(buffer)[:filled], last=last, release=release)


class _Source:
    def __init__(self, pieces: Iterable[bytes | memoryview], seen: Seen) -> None:
        self._pieces = iter(pieces)
        self._seen = seen
        self._rest = memoryview(b"")
        self._start = bytearray()

    def small(self) -> bytes | None:
        """Return everything if it is a small object. If not, what was read of it comes first in `fill`."""
        while self.more():
            take = self._rest[: SMALL + 1 - len(self._start)]
            self._start += take
            self._rest = self._rest[len(take) :]
            if len(self._start) > SMALL:
                return None
        return bytes(self._start)

    def fill(self, buffer: memoryview) -> int:
        """Fill a buffer as far as there is something to fill it with."""
        at = len(self._start)
        buffer[:at] = self._start
        self._start.clear()
        while at < len(buffer) and self.more():
            take = self._rest[: len(buffer) - at]
            buffer[at : at + len(take)] = take
            self._rest = self._rest[len(take) :]
            at += len(take)
        return at

    def more(self) -> bool:
        """Return whether there is something left, asked of the pieces' maker where need be."""
        while not self._rest:
            self._rest = memoryview(b"")  # lets go of the used piece before its maker touches it again
            piece = next(self._pieces, None)
            if piece is None:
                return False
            self._rest = memoryview(piece).cast("B")
            self._seen.digest.update(self._rest)
            self._seen.size += len(self._rest)
        return True


def _once(memory: Memory, buffer: mmap) -> Callable[[], None]:
    """Return what gives a buffer back, the first time it is called."""
    lock = threading.Lock()

    def release() -> None:
        if lock.acquire(blocking=False):
            memory.give(buffer)

    return release
