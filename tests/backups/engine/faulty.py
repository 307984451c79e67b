"""A store that fails as it is told, and what the tests of faults do with it."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable
from typing import TYPE_CHECKING

from backups.engine import names
from backups.engine.stores.base import Stored, StoreError
from backups.engine.stores.folder import FolderStore

if TYPE_CHECKING:
    from tests.backups.engine.conftest import Bench

ROWS = "SELECT md5(string_agg(id::text, ',' ORDER BY id)) || count(*) FROM message"
BULK = "SELECT pg_logical_emit_message(true, 'test', repeat('x', 20000000))"
"""About 20 MB of WAL."""


class Store(FolderStore):
    """A folder that can be away, or break off right after it has kept something."""

    away = False
    forgetful = ""
    """Names with this in them are kept, and then it is as if nobody had heard it."""

    def put(self, name: str, pieces: Iterable[bytes | memoryview]) -> Stored:
        if self.away:
            raise StoreError("The store does not answer (a test).")
        stored = super().put(name, pieces)
        if self.forgetful and self.forgetful in name:
            self.forgetful = ""
            raise StoreError("The connection ended (a test).")
        return stored

    def head(self, name: str) -> Stored:
        if self.away:
            raise StoreError("The store does not answer (a test).")
        return super().head(name)


def write(bench: Bench, rows: int = 1) -> None:
    """Commit some rows, each by itself."""
    for _ in range(rows):
        bench.cluster.value("INSERT INTO message DEFAULT VALUES")


def switch(bench: Bench) -> None:
    bench.cluster.value("SELECT pg_switch_wal()")


def bring_back(bench: Bench, number: int = 0) -> None:
    """Bring a point and all WAL after it back, and compare."""
    bench.covered()
    point = bench.point(number)
    bench.stop()
    assert bench.restored(point).value(ROWS) == bench.cluster.value(ROWS)
    chain = bench.restorer.moments(point.line)
    for before, after in itertools.pairwise(chain):
        assert after.previous == _sha(bench, names.moment(point.line, before.id))


def _sha(bench: Bench, name: str) -> str:
    return hashlib.sha256(b"".join(bench.store.get(name))).hexdigest()
