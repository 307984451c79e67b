"""A real PostgreSQL, a folder as the store, and an engine between them."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from backups.engine import agent
from backups.engine.agent import Engine
from backups.engine.database import stream
from backups.engine.manifest import Point
from backups.engine.progress import Progress
from backups.engine.settings import Database, FolderStoreAt, Policy, Settings, Tools
from backups.engine.stores.folder import FolderStore
from provisioning.providers.local.postgres import BIN
from tests.backups.clusters import CAPABILITIES, NOBODY, Cluster
from tests.backups.engine import faulty
from tests.backups.keys import MemoryKeys
from tests.backups.recovery import Restorer

ORGANISATION, SERVER = "alice-and-friends", "00000000-0000-4000-8000-00000000000a"
QUICK = Policy(media_every=0.5, moment_every=0.5, tail_every=0.5, sync_every=0.2)


def wait_for(condition: Callable[[], Any], seconds: float = 60) -> Any:
    """Wait until `condition()` holds and return it, or fail."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)
    return found


class Bench:
    """A cluster and a store in one folder, and the engine between them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cluster = Cluster(folder / "a")
        self.store = FolderStore("folder", folder / "store", make=True)
        self.keys = MemoryKeys()
        self.said = io.StringIO()
        self.engine: Engine | None = None
        self._thread: threading.Thread | None = None
        self._restored = 0
        (folder / "password").write_text("secret\n")
        (folder / "homeserver.yaml").write_text("server_name: alice.hearth.localhost\n")

    def settings(self, **changes: Any) -> Settings:
        """Settings for this cluster and store."""
        folder = self.folder
        values: dict[str, Any] = {
            "organisation": ORGANISATION,
            "server": SERVER,
            "server_name": "alice.hearth.localhost",
            "database": Database(host=str(self.cluster.folder), password_file=str(folder / "password")),
            "tools": Tools(programs=str(BIN), uid=NOBODY, gid=NOBODY, capabilities=CAPABILITIES),
            "state": str(folder / "state"),
            "store": FolderStoreAt(path=str(folder / "store"), make=True),
            "configuration": {"homeserver.yaml": str(folder / "homeserver.yaml")},
            "policy": QUICK,
        }
        return Settings(**(values | changes))

    def start(self, **changes: Any) -> Engine:
        """Start an engine in this process; `store`, `hearth` and `media` are the engine's own."""
        parts = {name: changes.pop(name) for name in ("hearth", "media") if name in changes}
        store = changes.pop("with_store", self.store)
        engine = Engine(self.settings(**changes), store, self.keys, progress=Progress(self.said), **parts)
        self._thread = threading.Thread(target=engine.run)
        self._thread.start()
        self.engine = engine
        return engine

    def stop(self) -> None:
        """Stop the engine as a signal does."""
        if self.engine is not None and self._thread is not None:
            self.engine.stop()
            self._thread.join(60)
            assert not self._thread.is_alive()
        self.engine = None

    def events(self, name: str) -> list[dict[str, Any]]:
        """What the engine told of that kind."""
        return [line for line in map(json.loads, self.said.getvalue().splitlines()) if line["event"] == name]

    def point(self, number: int = 0) -> Point:
        """The restore point of that number, once it is there."""
        wait_for(lambda: len(self.events("point-stored")) > number)
        return self.restorer.points()[number]

    def covered(self) -> None:
        """Wait until all that is committed now is stored, and named by a moment."""
        at = self.cluster.value("SELECT clock_timestamp()")
        self.cluster.value("SELECT pg_current_xact_id()")
        wait_for(lambda: any(each["moment_at"] >= at.isoformat() for each in self._moments()))

    def _moments(self) -> list[dict[str, Any]]:
        return [{**each, "moment_at": each["moment_at"].replace("Z", "+00:00")} for each in self.events("moment")]

    @property
    def restorer(self) -> Restorer:
        return Restorer(self.store, ORGANISATION, SERVER, self.keys.open)

    def restored(self, point: Point, *, until: str = "") -> Cluster:
        """A new cluster, brought back from the store."""
        self._restored += 1
        return self.restorer.restore(point, Cluster(self.folder / f"r{self._restored}"), until=until)


@pytest.fixture(scope="session")
def template() -> Iterator[Path]:
    """The data folder of a cluster that was just made; copying it is quicker than making another."""
    folder = Path(tempfile.mkdtemp(prefix="hb-", dir="/tmp"))
    folder.chmod(0o755)
    cluster = Cluster(folder / "t")
    try:
        cluster.make().stop()
        yield cluster.data
    finally:
        cluster.stop()
        shutil.rmtree(folder)


@pytest.fixture
def bench(template: Path) -> Iterator[Bench]:
    """A running cluster and a store; its engine does not run yet."""
    with benched(template) as found:
        yield found


@contextlib.contextmanager
def benched(template: Path) -> Iterator[Bench]:
    """Give a running cluster and a store, with an engine that will look around often."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stream, "TURN", 0.1)
        patch.setattr(agent, "TURN", 0.1)
        yield from _bench(template)


def _bench(template: Path) -> Iterator[Bench]:
    folder = Path(tempfile.mkdtemp(prefix="hb-", dir="/tmp"))
    folder.chmod(0o755)
    bench = Bench(folder)
    clusters: list[Cluster] = [bench.cluster]
    plain = bench.restored

    def restored(point: Point, *, until: str = "") -> Cluster:
        clusters.append(plain(point, until=until))
        return clusters[-1]

    bench.restored = restored  # type: ignore[method-assign]
    try:
        bench.cluster.make(template)
        yield bench
    finally:
        sys.stdout.write(bench.said.getvalue())
        bench.stop()
        for each in clusters:
            each.stop()
        shutil.rmtree(folder)


@pytest.fixture
def store(bench: Bench) -> Iterator[faulty.Store]:
    store = faulty.Store("folder", bench.folder / "store", make=True)
    bench.store = store
    bench.cluster.value("CREATE TABLE message (id serial PRIMARY KEY)")
    yield store
    store.away = False
