"""Everything is killed at random while rows are committed; what was acknowledged comes back."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import psutil
import psycopg
import pytest

from backups.engine.settings import Settings
from tests.backups.engine.conftest import Bench, wait_for
from tests.backups.keys import FileKeys
from tests.backups.recovery import Restorer

ROOT = Path(__file__).resolve().parents[3]
KILLS = int(os.environ.get("KILLS", "3"))
"""How many; `make test-long` has more."""


class Engine:
    """An engine in a process of its own."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.settings: Settings = bench.settings()
        self.file = bench.folder / "settings.json"
        self.file.write_bytes(msgspec.json.encode(self.settings))
        self.keys = FileKeys(bench.folder / "keys.jsonl")
        self.log = bench.folder / "progress.jsonl"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        words = [sys.executable, "-m", "tests.backups.engine.runner", str(self.file), str(self.keys.path)]
        environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'platform'}:{ROOT}"}
        with self.log.open("ab") as log, (self.bench.folder / "errors").open("ab") as errors:
            self.process = subprocess.Popen(words, cwd=ROOT, env=environment, stdout=log, stderr=errors)

    def end(self, number: int) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(60)

    def children(self, name: str) -> list[psutil.Process]:
        assert self.process is not None
        with contextlib.suppress(psutil.NoSuchProcess):
            return [each for each in psutil.Process(self.process.pid).children() if each.name() == name]
        return []

    def events(self, name: str) -> list[dict[str, str]]:
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [line for line in map(json.loads, lines) if line["event"] == name]

    @property
    def restorer(self) -> Restorer:
        it = self.settings
        return Restorer(self.bench.store, it.organisation, it.server, self.keys.open)


class Writer(threading.Thread):
    """Commits rows one by one; `acknowledged` are those of which the database said so."""

    def __init__(self, bench: Bench) -> None:
        super().__init__(daemon=True)
        self.bench = bench
        self.acknowledged: list[int] = []
        self.over = threading.Event()

    def run(self) -> None:
        number = 0
        while not self.over.is_set():
            with contextlib.suppress(psycopg.OperationalError), self.bench.cluster.connect() as connection:
                while not self.over.is_set():
                    number += 1
                    connection.execute("INSERT INTO message VALUES (%s, repeat('x', 2000))", [number])
                    self.acknowledged.append(number)
            time.sleep(0.05)


@pytest.fixture
def engine(bench: Bench) -> Iterator[Engine]:
    bench.cluster.value("CREATE TABLE message (id int PRIMARY KEY, body text)")
    engine = Engine(bench)
    bench.keys = engine.keys  # type: ignore[assignment]
    try:
        engine.start()
        yield engine
    finally:
        if engine.process is not None and engine.process.poll() is None:
            engine.process.kill()
            engine.process.wait()


@pytest.mark.repeated
def test_no_acknowledged_row_is_lost_whatever_is_killed(bench: Bench, engine: Engine) -> None:
    seed = random.randrange(1 << 30)
    sys.stdout.write(f"seed {seed}\n")
    dice = random.Random(seed)
    wait_for(lambda: engine.events("point-stored"))
    writer = Writer(bench)
    writer.start()
    victims = ["receiver", "engine", "database"] * (KILLS // 3)
    dice.shuffle(victims)
    for victim in victims:
        time.sleep(dice.uniform(0.2, 1.5))
        kill(bench, engine, victim)
    writer.over.set()
    writer.join(60)
    bench.cluster.value("INSERT INTO message VALUES (0, '')")
    covered = bench.cluster.value("SELECT clock_timestamp()").isoformat()
    bench.cluster.value("SELECT pg_current_xact_id()")
    wait_for(lambda: any(each["moment_at"].replace("Z", "+00:00") >= covered for each in engine.events("moment")), 120)
    assert engine.end(signal.SIGTERM) == 0

    point = engine.restorer.points()[0]
    assert {moment.line for moment in engine.restorer.moments(point.line)} == {point.line}
    assert not engine.events("line-ended")
    restored = bench.restored(point)
    with restored.connect() as connection:
        found = {row[0] for row in connection.execute("SELECT id FROM message")}
    assert set(writer.acknowledged) <= found
    query = "SELECT md5(string_agg(id || body, ',' ORDER BY id)) FROM message"
    assert restored.value(query) == bench.cluster.value(query)


def kill(bench: Bench, engine: Engine, victim: str) -> None:
    """Kill it, and let all go on."""
    if victim == "receiver":
        for each in engine.children("pg_receivewal"):
            each.kill()
    elif victim == "engine":
        receivers = engine.children("pg_receivewal")
        engine.end(signal.SIGKILL)
        assert not psutil.wait_procs(receivers, timeout=60)[1]
        engine.start()
    else:
        bench.cluster.kill()
        bench.cluster.start()


def test_a_base_backup_that_is_cut_off_leaves_nothing_behind(bench: Bench, engine: Engine) -> None:
    wait_for(lambda: engine.events("point-stored"))
    assert engine.end(signal.SIGTERM) == 0
    before = {each.name for each in bench.store.listing("points")}
    slow = msgspec.structs.replace(engine.settings.policy, base_every=0.1, base_rate_kb=2048)
    engine.file.write_bytes(msgspec.json.encode(msgspec.structs.replace(engine.settings, policy=slow)))
    engine.start()
    wait_for(lambda: engine.children("pg_basebackup"))
    bench.cluster.kill()
    bench.cluster.start()
    wait_for(lambda: engine.events("trouble"))
    wait_for(lambda: engine.children("pg_basebackup"))
    family = engine.children("pg_basebackup") + engine.children("pg_receivewal")

    assert engine.end(signal.SIGTERM) == 0

    assert not [each for each in family if each.is_running()]
    assert {each.name for each in bench.store.listing("points")} == before


def test_a_store_that_hangs_does_not_hold_up_the_end(bench: Bench, engine: Engine) -> None:
    wait_for(lambda: engine.events("point-stored"))
    engine.keys.path.with_suffix(".hang").touch()
    bench.cluster.value("INSERT INTO message VALUES (1, '')")
    bench.cluster.value("SELECT pg_switch_wal()")
    wait_for(engine.keys.path.with_suffix(".hangs").exists)
    family = engine.children("pg_receivewal")

    assert engine.end(signal.SIGTERM) == 0

    assert "wal" in engine.events("stopped")[-1]["hanging"]
    assert not [each for each in family if each.is_running()]


def test_two_engines_do_not_share_a_state_folder(bench: Bench, engine: Engine) -> None:
    wait_for(lambda: engine.events("started"))
    first = engine.process
    engine.start()
    assert engine.process is not None
    try:
        assert engine.process.wait(60) == 1
        assert "Another engine works" in (bench.folder / "errors").read_text()
    finally:
        engine.process = first
