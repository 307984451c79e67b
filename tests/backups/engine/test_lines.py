"""What ends a line of WAL and what does not: the slot, the spool, the disk, another database, store or timeline."""

from __future__ import annotations

import os
import shutil
import subprocess

import msgspec

from backups.engine.settings import FolderStoreAt
from tests.backups.engine.conftest import QUICK, Bench, wait_for
from tests.backups.engine.faulty import BULK, ROWS, Store, bring_back, switch, write
from tests.left_out import leave_out


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
    # Once the server has been told that these are safe it does not keep them.
    told = "SELECT restart_lsn >= pg_current_wal_lsn() - 16777216 FROM pg_replication_slots"
    wait_for(lambda: bench.cluster.value(told))
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
