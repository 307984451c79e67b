"""A server that several sessions write to while it is backed up, and what there must be of it at any of its moments."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

from backups.engine.restore.request import Request
from tests.backups.restore.conftest import Server

WRITERS = 3
CLOSE = timedelta(milliseconds=20)
"""Two sessions that commit at one moment may write that down in either order."""


class Busy:
    """Its rows by the time of their commits, and its files by the time they were there."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.moments: list[datetime] = []
        self._rows: dict[int, tuple[str, datetime]] = {}
        self._files: dict[str, datetime] = {}

    @property
    def moment(self) -> datetime:
        """One with commits before and behind it."""
        return self.moments[0]

    def fill(self, moments: int = 1, apart: float = 1.0) -> Busy:
        """Back it up while it is written to; `moments` are taken `apart` seconds from each other, then it stands."""
        cluster = self.server.cluster
        cluster.stop()
        cluster.settings["track_commit_timestamp"] = "on"
        cluster.start()
        cluster.value("CREATE TABLE message (id int PRIMARY KEY, body text)")
        for size in (10, 1000, 100_000, 9 << 20):
            self._add(size)
        self.server.start()
        self.server.point()
        with self._written():
            time.sleep(2)
            cluster.value("SELECT pg_switch_wal()")
            for number in range(moments):
                self.moments.append(cluster.value("SELECT clock_timestamp()"))
                time.sleep(apart)
                self._add(1000 + number)
            cluster.value("SELECT pg_switch_wal()")
        with cluster.connect() as connection:
            rows = connection.execute("SELECT id, body, pg_xact_commit_timestamp(xmin) FROM message").fetchall()
        self._rows = {number: (body, at) for number, body, at in rows}
        self.server.covered()
        self.server.stop()
        cluster.stop()
        return self

    def check(self, request: Request, moment: datetime | None = None) -> tuple[int, int]:
        """Every row and every file of the moment is there, to the last byte, and no later row. Return how many."""
        moment = moment or self.moment
        cluster = self.server.started(request)
        with cluster.connect() as connection:
            found = dict(connection.execute("SELECT id, body FROM message").fetchall())
        cluster.stop()
        until = {number: body for number, (body, at) in self._rows.items() if at <= moment}
        assert found.items() <= until.items()
        assert {number for number, (_, at) in self._rows.items() if at <= moment - CLOSE} <= found.keys()
        assert 0 < len(found) < len(self._rows)
        media, all_files = Path(request.media), self.server.files.all()
        files = {str(path.relative_to(media)): path.read_bytes() for path in media.rglob("*") if path.is_file()}
        assert files.items() <= all_files.items()
        assert {path for path, at in self._files.items() if at <= moment} <= files.keys()
        return len(found), len(files)

    def _add(self, size: int) -> None:
        before = self.server.files.all().keys()
        self.server.files.add(os.urandom(size), thumbnails=2)
        at = self.server.cluster.value("SELECT clock_timestamp()")
        self._files |= dict.fromkeys(self.server.files.all().keys() - before, at)

    @contextlib.contextmanager
    def _written(self) -> Iterator[None]:
        stop = threading.Event()
        threads = [threading.Thread(target=self._write, args=(number, stop)) for number in range(WRITERS)]
        for each in threads:
            each.start()
        try:
            yield
        finally:
            stop.set()
            for each in threads:
                each.join()

    def _write(self, number: int, stop: threading.Event) -> None:
        with self.server.cluster.connect() as connection:
            while not stop.is_set():
                connection.execute("INSERT INTO message VALUES (%s, repeat(md5(%s), 40))", [number, str(number)])
                number += WRITERS
