"""From a living database to its rows brought back, by the engine in this process."""

from __future__ import annotations

import threading
import time
import uuid

from backups.engine.hearth import Order
from tests.backups.clusters import run
from tests.backups.engine.conftest import Bench, wait_for


def test_it_brings_back_rows_of_before_and_after_the_base_backup(bench: Bench) -> None:
    bench.cluster.value("CREATE TABLE message (id int PRIMARY KEY, body text)")
    bench.cluster.value("INSERT INTO message SELECT n, md5(n::text) FROM generate_series(1, 1000) n")
    bench.start()
    point = bench.point()
    bench.cluster.value("INSERT INTO message VALUES (1001, 'after the base backup')")
    bench.covered()
    bench.stop()

    restored = bench.restored(point)

    query = "SELECT md5(string_agg(id || body, ',' ORDER BY id)) FROM message"
    assert restored.value(query) == bench.cluster.value(query)


def test_it_brings_back_any_second_also_a_quiet_one(bench: Bench) -> None:
    bench.cluster.value("CREATE TABLE message (id int PRIMARY KEY)")
    bench.start()
    point = bench.point()
    bench.cluster.value("INSERT INTO message VALUES (1)")
    time.sleep(0.1)
    first = bench.cluster.value("SELECT clock_timestamp()")
    time.sleep(0.1)
    bench.cluster.value("INSERT INTO message VALUES (2)")
    time.sleep(0.1)
    last = bench.cluster.value("SELECT clock_timestamp()")  # nothing is committed after it but our marker
    bench.covered()
    bench.stop()

    assert bench.restored(point, until=str(first)).value("SELECT array_agg(id ORDER BY id) FROM message") == [1]
    assert bench.restored(point, until=str(last)).value("SELECT array_agg(id ORDER BY id) FROM message") == [1, 2]


def test_a_base_backup_under_load(bench: Bench) -> None:
    where = ("-h", str(bench.cluster.folder), "-U", "postgres")
    run(bench.cluster.folder, "pgbench", *where, "-i", "-q", "-s", "2", "postgres")
    engine = bench.start()
    bench.point()
    load = threading.Thread(
        target=run, args=(bench.cluster.folder, "pgbench", *where, "-c", "3", "-T", "3", "-n", "postgres")
    )
    load.start()
    engine.order(Order(id=uuid.uuid4(), kind="backup", reason="manual"))
    point = bench.point(1)
    load.join()
    bench.covered()
    bench.stop()

    restored = bench.restored(point)

    for table in ("accounts", "tellers", "branches", "history"):
        query = "SELECT md5(string_agg(t::text, ',' ORDER BY t::text)) FROM pgbench_" + table + " t"  # noqa: S608 (ours)
        assert restored.value(query) == bench.cluster.value(query)


def test_a_database_at_rest_costs_no_objects(bench: Bench) -> None:
    bench.start()
    bench.point()
    bench.cluster.value("CHECKPOINT")

    def look() -> tuple[str, list[str]]:
        written = bench.cluster.value("SELECT pg_current_wal_insert_lsn()::text")
        return str(written), sorted(each.name for each in bench.store.listing())

    def rests() -> bool:
        before = look()
        time.sleep(2)  # four looks at the tail, four turns of the moments
        return look() == before

    wait_for(rests)  # the server itself still writes down something of the checkpoint


def test_its_end_leaves_no_process(bench: Bench) -> None:
    engine = bench.start()
    bench.point()
    assert engine.stream.receiver is not None
    pid = engine.stream.receiver.pid
    assert pid is not None

    bench.stop()

    wait_for(lambda: not bench.cluster.value("SELECT count(*) FROM pg_stat_replication"))
    assert engine.stream.receiver.pid is None
