"""Reading one object of a bucket: by ranges, some of them ahead of the reader, as far as there is memory for them."""

from __future__ import annotations

import contextlib
import random
import re
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from mmap import mmap
from typing import Any

from backups.engine.stores.base import StoreError
from backups.engine.stores.connection import Connection, PreconditionFailed
from backups.engine.stores.memory import MIB, Memory

RANGE = 4 * MIB
AHEAD = 3
"""Ranges on their way beside the one that is read."""
PIECE = MIB // 2
"""A block of the heap, which is used again; from 1 MiB on each would be new memory (`engine.memory`)."""
_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")
_FIRST_PAUSE = 0.2
_LONGEST_PAUSE = 10.0


@dataclass
class _Ahead:
    """A range that is read ahead of its reader."""

    begin: int
    end: int
    buffer: mmap
    future: Future[None]


class Downloads:
    """Gets of one store."""

    def __init__(self, connection: Connection, memory: Memory, threads: Executor) -> None:
        self.connection = connection
        self.memory = memory
        self.threads = threads

    def get(self, name: str, offset: int, length: int | None) -> Iterator[bytes]:
        """Yield the object's bytes; see `Store.get`."""
        if length == 0:
            self.connection.head(name)
            return
        yield from _Reading(self, name).run(offset, length)


class _Reading:
    """One object, all of whose ranges are of one version of it."""

    def __init__(self, downloads: Downloads, name: str) -> None:
        self._connection = downloads.connection
        self._memory = downloads.memory
        self._threads = downloads.threads
        self._name = name
        self._mark = ""
        self._end = 0
        self._ahead: deque[_Ahead] = deque()
        self._next = 0

    def run(self, offset: int, length: int | None) -> Iterator[bytes]:
        wanted = RANGE if length is None else min(RANGE, length)
        answer = self._first(offset, wanted)
        if answer is None:
            return
        total = int(answer["total"])
        self._end = total if length is None else min(total, offset + length)
        begin, end = offset, min(offset + wanted, self._end)
        self._next = end
        try:
            self._read_ahead()
            yield from self._direct(begin, end, answer)
            while (begin := end) < self._end:
                end = min(begin + RANGE, self._end)
                yield from self._range(begin, end)
        finally:
            self._leave()

    def _first(self, offset: int, wanted: int) -> dict[str, Any] | None:
        """Ask for the first range; return the answer with the object's size, or None where nothing lies there."""
        try:
            answer = self._connection.call("get_object", "read", name=self._name, Range=_span(offset, offset + wanted))
        except StoreError as error:
            if error.code != "BeyondEnd":
                raise
            return None
        told = _RANGE.fullmatch(answer.get("ContentRange", ""))
        if told is None or int(told[1]) != offset:
            if offset or answer["ContentLength"] > wanted:
                answer["Body"].close()
                raise self._connection.fault("StoreMisused", "read", "no ranges")
            answer["total"] = answer["ContentLength"]  # a server may answer a small object as a whole
        else:
            answer["total"] = int(told[3])
        self._mark = str(answer["ETag"])
        return answer if answer["total"] else None

    def _range(self, begin: int, end: int) -> Iterator[bytes]:
        """Yield one range, from memory if it was read ahead."""
        if not self._ahead or self._ahead[0].begin != begin:
            self._next = max(self._next, end)
            self._read_ahead()
            yield from self._direct(begin, end)
            return
        ahead = self._ahead.popleft()
        if ahead.future.cancel():  # everybody is busy: nobody began with it
            self._memory.give_ahead(ahead.buffer)
            self._read_ahead()
            yield from self._direct(begin, end)
            return
        try:
            ahead.future.result()
            self._read_ahead()
            with memoryview(ahead.buffer) as view:
                for at in range(0, end - begin, PIECE):
                    yield bytes(view[at : min(at + PIECE, end - begin)])
        finally:
            self._memory.give_ahead(ahead.buffer)

    def _read_ahead(self) -> None:
        while len(self._ahead) < AHEAD and self._next < self._end:
            end = min(self._next + RANGE, self._end)
            buffer = self._memory.try_take_ahead(RANGE)
            if buffer is None:
                return
            future = self._threads.submit(self._fill, self._next, end, buffer)
            self._ahead.append(_Ahead(self._next, end, buffer, future))
            self._next = end

    def _fill(self, begin: int, end: int, buffer: mmap) -> None:
        at = 0
        for data in self._direct(begin, end):
            buffer[at : at + len(data)] = data
            at += len(data)

    def _direct(self, begin: int, end: int, answer: dict[str, Any] | None = None) -> Iterator[bytes]:
        """Yield a range as it comes; where it breaks off ask again for what is missing."""
        pause = _FIRST_PAUSE
        for tries in range(self._connection.where.tries, 0, -1):
            answer = answer or self._ask(begin, end)  # tried again by itself
            try:
                for data in self._stream(begin, end, answer):
                    begin += len(data)
                    yield data
                return
            except StoreError as error:
                if not error.retry or tries == 1:
                    raise
                answer = None
            time.sleep(random.uniform(pause / 2, pause))  # noqa: S311 (spreads what comes again)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _stream(self, begin: int, end: int, answer: dict[str, Any]) -> Iterator[bytes]:
        with contextlib.closing(answer["Body"]):
            while begin < end:
                data = self._connection.read(answer, min(PIECE, end - begin))
                if not data:
                    raise self._connection.fault("StoreAway", "read", "it broke off")
                begin += len(data)
                yield data

    def _ask(self, begin: int, end: int) -> dict[str, Any]:
        try:
            return self._connection.call(
                "get_object", "read", name=self._name, Range=_span(begin, end), IfMatch=self._mark
            )
        except PreconditionFailed:
            raise StoreError(
                f"The object {self._name} was replaced while it was read. What came of it can't be used.",
                code="StoreDamaged",
                retry=False,
            ) from None

    def _leave(self) -> None:
        """Give the memory of what was read ahead back, each buffer once nobody writes into it any more."""
        for each in self._ahead:
            if each.future.cancel():
                self._memory.give_ahead(each.buffer)
            else:
                each.future.add_done_callback(_giver(self._memory, each.buffer))
        self._ahead.clear()


def _giver(memory: Memory, buffer: mmap) -> Callable[[Future[None]], None]:
    return lambda _: memory.give_ahead(buffer)


def _span(begin: int, end: int) -> str:
    return f"bytes={begin}-{end - 1}"
