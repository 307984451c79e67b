"""What goes wrong around an engine: the store, the keys, the clock, orders. What is stored can be brought back."""

from __future__ import annotations

import dataclasses
import time
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest

from backups.engine.database.postgres import Now, Session
from backups.engine.hearth import Order
from backups.engine.state import State
from tests.backups.engine.conftest import QUICK, Bench, wait_for
from tests.backups.engine.faulty import ROWS, Store, bring_back, switch, write
from tests.backups.hearths import Hearth


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
    reports = len(hearth.reports)
    wait_for(lambda: len(hearth.reports) > reports + 2 and told.point in hearth.points)
    kinds = [point.kind for point in bench.restorer.points()]
    assert kinds.count("manual") == 1
    engine = bench.engine
    assert engine is not None
    wait_for(lambda: not engine.work.memory.state.untold)


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
    reports = len(hearth.reports)
    wait_for(lambda: len(hearth.reports) > reports + 2)
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
