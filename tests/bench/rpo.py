"""What is lost when all is lost: fifty times under load something is killed, and the store alone is what is left.

Each time the database, the engine or its receiver gets SIGKILL, or the store stops answering for a while; at that
instant the store is copied. Afterwards each copy is restored, as if it were all that there is. A row counts as lost if
the database had acknowledged it and it is not there; how long before the instant the oldest such row was acknowledged
is the observed RPO. The same for media, by the time a file was written. The policy is the one that servers have: the
tail every 30 seconds, media every 5 minutes.

    python -m tests.bench.rpo [times]        (50; some 20 seconds each, and a restore: 20 minutes)
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg

from backups.engine.settings import FolderStoreAt, Policy, Settings
from backups.engine.stores.folder import FolderStore
from tests.backups.engine.conftest import wait_for
from tests.backups.engine.test_killed import Engine, kill
from tests.backups.restore.conftest import Server

WINDOW = 60.0
"""Seconds; a row that was acknowledged longer ago must never be lost."""
VICTIMS = ("database", "engine", "receiver", "store")
AWAY = 5.0


class Real(Server):
    """A server with the policy that servers have."""

    def settings(self, **changes: Any) -> Settings:
        # Not made anew while it is away: what is stored meanwhile would go with it.
        store = FolderStoreAt(path=str(self.folder / "store"))
        return super().settings(**({"policy": Policy(), "store": store} | changes))


@dataclass
class Load(threading.Thread):
    """Commits rows and writes files, and knows when each was acknowledged."""

    server: Server
    rows: dict[int, float] = field(default_factory=dict)
    files: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__(daemon=True)
        self.over = threading.Event()

    def __hash__(self) -> int:
        return id(self)

    def run(self) -> None:
        key, file_at = 0, 0.0
        while not self.over.wait(0.05):
            with contextlib.suppress(psycopg.OperationalError), self.server.cluster.connect() as connection:
                while not self.over.wait(0.002):
                    key += 1
                    connection.execute("INSERT INTO message VALUES (%s, repeat('x', 500))", [key])
                    self.rows[key] = time.time()
                    if time.time() - file_at > 1:
                        file_at = time.time()
                        self.files[self.server.files.add(os.urandom(2000))] = file_at


@dataclass(frozen=True)
class Disaster:
    """An instant at which all but the store is lost."""

    at: float
    store: Path
    victim: str


def main(times: int = 50) -> int:
    """Kill, copy, restore each copy, print one line of JSON."""
    folder = Path(tempfile.mkdtemp(prefix="hb-", dir="/tmp"))
    folder.chmod(0o755)
    server = Real(folder)
    engine = None
    try:
        server.cluster.make()
        server.cluster.value("CREATE TABLE message (id int PRIMARY KEY, body text)")
        server.store.check()  # which makes it
        engine = Engine(server)
        server.keys = engine.keys
        load = Load(server)
        disasters = _disasters(server, engine, load, times)
        print(json.dumps(_measure(server, load, disasters)), flush=True)  # noqa: T201 (this is a command)
    finally:
        if engine is not None and engine.process is not None and engine.process.poll() is None:
            engine.end(9)
        for each in (server.cluster, *server.living):
            each.stop()
        shutil.rmtree(folder)
    return 0


def _disasters(server: Server, engine: Engine, load: Load, times: int) -> list[Disaster]:
    dice, found = random.Random(times), list[Disaster]()
    engine.start()
    wait_for(lambda: engine.events("point-stored"))
    load.start()
    wait_for(lambda: engine.events("moment"), 400)
    for turn in range(times):
        time.sleep(dice.uniform(5, 35))
        victim = VICTIMS[turn % len(VICTIMS)]
        copy = server.folder / f"store-{turn}"
        at = time.time()
        subprocess.run(["cp", "-al", str(server.folder / "store"), str(copy)], check=False)
        found.append(Disaster(at, copy, victim))
        _strike(server, engine, victim)
    load.over.set()
    load.join()
    return found


def _strike(server: Server, engine: Engine, victim: str) -> None:
    if victim != "store":
        kill(server, engine, victim)
        return
    place = server.folder / "store"
    place.rename(server.folder / "away")
    time.sleep(AWAY)
    (server.folder / "away").rename(place)


def _measure(server: Server, load: Load, disasters: list[Disaster]) -> dict[str, Any]:
    observed, media, older = [], [], 0
    for turn, disaster in enumerate(disasters):
        request = server.request(f"n{turn}", store=FolderStoreAt(path=str(disaster.store)))
        server.restore(request, FolderStore("copy", disaster.store))
        cluster = server.started(request)
        with cluster.connect() as connection:
            there = {row[0] for row in connection.execute("SELECT id FROM message")}
        cluster.stop()
        lost = [disaster.at - at for key, at in load.rows.items() if at <= disaster.at and key not in there]
        folder = Path(request.media)
        gone = [
            disaster.at - at for path, at in load.files.items() if at <= disaster.at and not (folder / path).exists()
        ]
        observed.append(max(lost, default=0.0))
        media.append(max(gone, default=0.0))
        older += sum(age > WINDOW for age in lost)
        shutil.rmtree(folder.parent)
        shutil.rmtree(disaster.store)
    return {
        "p99_s": round(_p99(observed), 1),
        "median_s": round(sorted(observed)[len(observed) // 2], 1),
        "lost_older": older,
        "media_p99_s": round(_p99(media), 1),
        "times": len(disasters),
        "rows": len(load.rows),
        "files": len(load.files),
    }


def _p99(values: list[float]) -> float:
    return sorted(values)[max(-(-len(values) * 99 // 100) - 1, 0)]


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:2])))
