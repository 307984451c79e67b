"""What goes wrong around an engine: the store, the slot, the keys, the spool. What is stored can be brought back."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import os
import shutil
import subprocess
import time
import uuid
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest

from backups.engine import names
from backups.engine.database.postgres import Now, Session
from backups.engine.hearth import Order
from backups.engine.settings import FolderStoreAt
from backups.engine.state import State
from backups.engine.stores.base import Stored, StoreError
from backups.engine.stores.folder import FolderStore
from tests.backups.engine.conftest import QUICK, Bench, wait_for
from tests.backups.hearths import Hearth
from tests.left_out import leave_out

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


@pytest.fixture
def store(bench: Bench) -> Iterator[Store]:
    store = Store("folder", bench.folder / "store", make=True)
    bench.store = store
    bench.cluster.value("CREATE TABLE message (id serial PRIMARY KEY)")
    yield store
    store.away = False


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


def test_a_store_that_is_away_for_a_while_costs_nothing(bench: Bench, store: Store) -> None:
    bench.start()
    bench.point()
    store.away = True
    for _ in range(3):
        write(bench)
        switch(bench)
    wait_for(lambda: any(each["code"] == "StoreAway" for each in bench.events("trouble")))
    store.away = False
    write(bench)
    bring_back(bench)
    assert len(bench.events("line")) == 1


@pytest.mark.parametrize("part", ["/wal/", "/moments/", "points/2"])
def test_what_was_kept_and_not_heard_is_taken_as_it_is(bench: Bench, store: Store, part: str) -> None:
    bench.start()
    bench.point()
    for _ in range(2):
        store.forgetful = part
        write(bench)
        bench.engine.order(Order(id=uuid.uuid4(), kind="backup", reason="manual"))  # type: ignore[union-attr]
        wait_for(lambda: not store.forgetful)
        # As a crash at that moment: nothing of it was written down.
        bench.stop()
        bench.start()
    write(bench)
    bench.covered()
    told = {each["point"] for each in bench.events("point-stored")}
    bring_back(bench)
    assert len({each["line"] for each in bench.events("line")}) == 1
    assert {point.id for point in bench.restorer.points()} == told


def test_a_whole_segment_that_was_kept_and_not_heard(bench: Bench, store: Store) -> None:
    bench.start()
    bench.point()
    for _ in range(3):
        write(bench)
        switch(bench)
        store.forgetful = "/wal/"
        write(bench)
        switch(bench)
        wait_for(lambda: not store.forgetful)
    write(bench)
    bring_back(bench)
    assert len(bench.events("line")) == 1


def test_a_spool_past_its_limit_ends_the_line_and_the_next_begins_with_a_base(bench: Bench, store: Store) -> None:
    bench.start(policy=msgspec.structs.replace(QUICK, spool_bytes=64 * 2**20))
    first = bench.point()
    write(bench)
    bench.covered()
    rows = bench.cluster.value(ROWS)
    store.away = True
    for _ in range(5):
        bench.cluster.value(BULK)
    ended = wait_for(lambda: bench.events("line-ended"))[0]
    assert ended["reason"] == "SpoolFull"
    wait_for(lambda: not list((bench.folder / "state" / "spool").glob("*/*")))
    store.away = False

    second = bench.point(1)

    assert (second.line != first.line, second.kind) == (True, "after-gap")
    write(bench)
    bring_back(bench, 1)
    restored = bench.restored(first)
    assert restored.value(ROWS) == rows


def test_a_lost_slot_is_noticed_and_a_new_line_begins(bench: Bench, store: Store) -> None:
    engine = bench.start()
    first = bench.point()
    assert engine.stream.receiver is not None
    drop = (
        "SELECT pg_terminate_backend(active_pid, 5000), pg_drop_replication_slot(slot_name) FROM pg_replication_slots"
    )
    bench.cluster.value(drop)
    second = bench.point(1)
    assert second.line != first.line
    assert bench.events("line-ended")[0]["reason"] == "SlotLost"
    write(bench)
    bring_back(bench, 1)


def test_wal_that_the_server_removed_is_noticed(bench: Bench, store: Store) -> None:
    bench.cluster.value("ALTER SYSTEM SET max_slot_wal_keep_size = '32MB'")
    bench.cluster.value("ALTER SYSTEM SET max_wal_size = '32MB'")
    bench.cluster.value("SELECT pg_reload_conf()")
    bench.start()
    first = bench.point()
    bench.stop()
    for _ in range(6):
        bench.cluster.value(BULK)
        bench.cluster.value("CHECKPOINT")
    assert bench.cluster.value("SELECT wal_status FROM pg_replication_slots") in (b"lost", "lost")
    bench.start()
    second = bench.point(1)
    assert second.line != first.line
    assert bench.events("line-ended")[0]["reason"] == "SlotLost"
    bring_back(bench, 1)


def test_a_hole_in_the_spool_is_noticed(bench: Bench, store: Store) -> None:
    bench.start()
    first = bench.point()
    store.away = True
    write(bench)
    wait_for(lambda: any(each["code"] == "StoreAway" for each in bench.events("trouble")))
    for _ in range(4):
        write(bench)
        switch(bench)
    spool = wait_for(lambda: sorted((bench.folder / "state" / "spool").glob("*/*[0-9A-F]")))
    wait_for(lambda: len(sorted((bench.folder / "state" / "spool").glob("*/*[0-9A-F]"))) >= 3)
    # The server has been told that these are safe, so it does not keep them.
    wait_for(lambda: str(bench.cluster.value("SELECT restart_lsn::text FROM pg_replication_slots")) > "")
    time.sleep(3)
    bench.stop()
    shutil.rmtree(spool[0].parent)
    bench.cluster.value("CHECKPOINT")
    store.away = False
    bench.start()
    second = bench.point(1)
    assert second.line != first.line
    assert bench.events("line-ended")[0]["reason"] == "Gap"
    bring_back(bench, 1)


def test_a_lost_state_folder_costs_a_line_and_no_backup(bench: Bench, store: Store) -> None:
    bench.start()
    first = bench.point()
    write(bench)
    bench.covered()
    rows = bench.cluster.value(ROWS)
    bench.stop()
    shutil.rmtree(bench.folder / "state")
    bench.start()
    second = bench.point(1)
    assert second.line != first.line
    bring_back(bench, 1)
    assert bench.restored(first).value(ROWS) == rows


def test_another_store_is_another_line(bench: Bench, store: Store) -> None:
    bench.start()
    bench.point()
    bench.stop()
    bench.store = Store("other", bench.folder / "other", make=True)
    bench.start(store=FolderStoreAt(path=str(bench.folder / "other"), make=True))
    wait_for(bench.restorer.points)
    write(bench)
    bring_back(bench)


def test_a_full_disk_costs_nothing_once_there_is_room(bench: Bench, store: Store) -> None:
    if os.geteuid() != 0:
        leave_out("only root may mount a small disk.")
    state = bench.folder / "state"
    state.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=60m,mode=755", "hearth-test", str(state)], check=True)
    try:
        bench.start()
        bench.point()
        store.away = True
        for _ in range(4):
            write(bench)
            bench.cluster.value(BULK)
        wait_for(lambda: any("No space left" in each["text"] for each in bench.events("receiver-ended")))
        store.away = False
        write(bench)
        bring_back(bench)
        assert not bench.events("line-ended")
    finally:
        bench.stop()
        subprocess.run(["umount", "--lazy", str(state)], check=True)


def test_another_database_is_another_line(bench: Bench, store: Store) -> None:
    bench.start()
    bench.point()
    bench.stop()
    bench.cluster.stop()
    shutil.rmtree(bench.cluster.data)
    bench.cluster.make()
    bench.cluster.value("CREATE TABLE message (id serial PRIMARY KEY)")
    bench.start()
    bench.point(1)
    assert bench.events("line-ended")[0]["reason"] == "OtherDatabase"
    write(bench)
    bring_back(bench, 1)


def test_a_timeline_that_goes_on_with_ours_stays_in_the_line(bench: Bench, store: Store) -> None:
    bench.start()
    point = bench.point()
    write(bench, 3)
    bench.covered()
    bench.stop()
    bench.cluster.stop()
    (bench.cluster.data / "recovery.signal").touch()
    bench.cluster.settings["restore_command"] = "false"
    bench.cluster.own(bench.cluster.data)
    bench.cluster.start()
    assert bench.cluster.value("SELECT timeline_id FROM pg_control_checkpoint()") == 2
    bench.start()
    write(bench, 3)
    switch(bench)
    write(bench, 3)
    bring_back(bench)
    assert bench.restorer.moments(point.line)[-1].timeline == 2
    assert not bench.events("line-ended")


def test_while_hearth_is_away_the_last_key_serves_on(bench: Bench, store: Store) -> None:
    bench.start(policy=msgspec.structs.replace(QUICK, key_every=1))
    bench.point()
    bench.keys.away = True
    time.sleep(1.5)
    for _ in range(3):
        write(bench)
        switch(bench)
    bench.covered()
    assert bench.events("key-kept")
    bring_back(bench)


def test_without_a_first_key_wal_waits_and_is_sent_later(bench: Bench, store: Store) -> None:
    bench.keys.away = True
    bench.start()
    wait_for(lambda: any(each["code"] == "HearthAway" for each in bench.events("trouble")))
    write(bench, 3)
    assert not list(bench.store.listing())
    bench.keys.away = False
    bench.point()
    bring_back(bench)


def test_orders_are_carried_out_once_and_told(bench: Bench, store: Store) -> None:
    hearth = Hearth()
    order = Order(id=uuid.uuid4(), kind="backup", reason="manual")
    hearth.orders = [order]
    bench.start(hearth=hearth)
    told = wait_for(lambda: hearth.ended(order.id))
    assert told.state == "done"
    hearth.orders = []
    time.sleep(1)
    kinds = [point.kind for point in bench.restorer.points()]
    assert kinds.count("manual") == 1
    assert {told.point} <= hearth.points
    assert not bench.engine or not bench.engine.work.memory.state.untold


def test_after_a_final_backup_nothing_is_kept_for_it(bench: Bench, store: Store) -> None:
    hearth = Hearth()
    bench.start(hearth=hearth)
    bench.point()
    write(bench)
    order = Order(id=uuid.uuid4(), kind="final", reason="final")
    hearth.orders = [order]
    told = wait_for(lambda: hearth.ended(order.id))
    wait_for(lambda: not bench.cluster.value("SELECT count(*) FROM pg_replication_slots"))
    bench.stop()
    bench.start(hearth=hearth)  # after a restart it rests, too
    time.sleep(2)
    assert not bench.cluster.value("SELECT count(*) FROM pg_replication_slots")
    bench.stop()
    point = next(each for each in bench.restorer.points() if each.id == told.point)
    assert bench.restored(point).value(ROWS) == bench.cluster.value(ROWS)


def test_a_clock_that_steps_back_breaks_no_chain(bench: Bench, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.start()
    point = bench.point()
    write(bench)
    bench.covered()
    right = Session.now

    def wrong(session: Session) -> Now:
        now = right(session)
        return dataclasses.replace(now, at=now.at - timedelta(hours=1))

    told = len(bench.events("moment"))
    monkeypatch.setattr(Session, "now", wrong)
    write(bench)
    wait_for(lambda: len(bench.events("moment")) > told)
    monkeypatch.setattr(Session, "now", right)
    write(bench)
    bring_back(bench)
    times = [moment.at for moment in bench.restorer.moments(point.line)]
    assert times != sorted(times)


def test_a_point_from_the_future_does_not_put_off_the_next(bench: Bench, store: Store) -> None:
    engine = bench.start()
    bench.point()
    with engine.work.memory.changing() as state:
        state.point_at = datetime.now(UTC) + timedelta(days=400)
    bench.point(1)


def test_a_state_that_is_cut_off_is_as_none(bench: Bench, store: Store) -> None:
    bench.start()
    bench.point()
    bench.stop()
    path = Path(bench.folder / "state" / "state.json")
    assert msgspec.json.decode(path.read_bytes(), type=State).line is not None
    path.write_bytes(path.read_bytes()[:-20])
    bench.start()
    bench.point(1)
    bring_back(bench, 1)
