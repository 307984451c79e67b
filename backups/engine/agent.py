"""The engine of one server: threads for the WAL, the moments, restore points, and for what Hearth has to say.

Each goes on by itself: whatever is away or full is tried again, told, and costs the others nothing. Imports no Django.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections import deque
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec

from backups.engine.database.postgres import Postgres
from backups.engine.database.stream import Stream
from backups.engine.faults import Faults, Loop
from backups.engine.hearth import Answer, Caller, LineReport, Order, OrderReport, Report, sync
from backups.engine.keys import HearthAwayError, Keys
from backups.engine.media.build import open_media
from backups.engine.moments import Moments
from backups.engine.objects import KeyService, Vault
from backups.engine.point import Points
from backups.engine.progress import Progress
from backups.engine.settings import Settings
from backups.engine.state import Memory
from backups.engine.stores.base import Store
from backups.engine.work import Media, Work
from security.errors import SecurityError

END_SECONDS = 6.0
"""From SIGTERM to the end."""
STATUS_SECONDS = 5.0
TURN = 1.0
LATE = 1.25
"""Hearth orders base backups; one that is this much later than it should be is taken without an order."""
WAL_WAIT, POINT_WAIT = 10.0, 600.0
"""The longest waits after failures: WAL is soon tried again, a base backup of many gigabytes is not."""
FIRST, AFTER_GAP, DAILY, FINAL = "first", "after-gap", "daily", "final"
ONE_FINAL = timedelta(days=1)
"""A final backup of so long ago needs no second base backup: what came after it is in the log."""


class Engine:
    """One server's engine. `run` returns when `stop` was called, by a signal for instance."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        service: KeyService,
        *,
        hearth: Caller | None = None,
        media: Media | None = None,
        progress: Progress | None = None,
    ) -> None:
        progress = progress or Progress()
        self.work = Work(
            settings=settings,
            policy=settings.policy,
            memory=Memory(Path(settings.state)),
            vault=Vault(store=store, organisation=settings.organisation, server=settings.server),
            keys=Keys(service, settings.policy.key_every, progress),
            postgres=Postgres(settings.database),
            progress=progress,
            faults=Faults(progress),
            media=media,
        )
        if media is None:
            work = self.work
            work.media = open_media(settings, work.vault, work.keys, progress, work.stop.is_set)
        self.stream = Stream(self.work)
        self.moments = Moments(self.work, self.stream)
        self.points = Points(self.work, self.stream)
        self._hearth = hearth
        self._orders: deque[Order] = deque()
        self._taking: Order | None = None
        self._status: dict[str, Any] = {}
        stop, faults = self.work.stop, self.work.faults
        self._wal = Loop("wal", self.stream.turn, stop, faults, longest=WAL_WAIT)
        self._moment = Loop("moments", self.moments.turn, stop, faults)
        self._point = Loop("points", self._take_due, stop, faults, longest=POINT_WAIT)
        self._sync = Loop("sync", self._tell, stop, faults)
        self.stream.wake, self.stream.opened = self._wal.wake.set, self._point.wake.set

    def run(self) -> list[str]:
        """Back up until `stop`; return what hangs in a call that nothing can interrupt.

        Raises `StateError` when the state folder can't be used.
        """
        work = self.work
        work.memory.open(work.settings.of)
        work.progress.say("started", pid=os.getpid(), server=work.settings.server, store=work.vault.store.name)
        loops = [self._wal, self._moment, self._point, *([self._sync] if self._hearth else [])]
        for loop in loops:
            loop.start()
        while not work.stop.wait(STATUS_SECONDS):
            self._leave_status()
        return self._end(loops)

    def stop(self) -> None:
        """End soon."""
        self.work.stop.set()

    @property
    def taking(self) -> Order | None:
        """The order that is being carried out."""
        return self._taking

    def store_all(self) -> None:
        """Have all WAL and media that there are stored and named soon: `moments.soon` is cleared when they are."""
        self.moments.soon.set()
        self._moment.wake.set()

    def order(self, order: Order) -> None:
        """Carry out an order, unless that is being done or was done."""
        known = {each.id for each in (*self._orders, *([self._taking] if self._taking else []))}
        state = self.work.memory.state
        known |= {each.id for each in (*state.orders, *([state.final] if state.final else []))}
        if order.id in known:
            return
        self._orders.append(order)
        self._point.wake.set()

    def _end(self, loops: list[Loop]) -> list[str]:
        """Leave nothing behind: first the children, then what waits for them."""
        end = time.monotonic() + END_SECONDS
        self.points.taker.cancel()
        self.stream.close()
        hanging = [loop.name for loop in loops if not loop.join(end - time.monotonic())]
        self.stream.close()
        self._leave_status()
        self.work.progress.say("stopped", hanging=hanging)
        self.work.memory.close()
        return hanging

    # --- restore points ------------------------------------------------------------------------------------------

    def _take_due(self) -> float:
        """Carry out the next order, or take a restore point that is due without one."""
        state = self.work.memory.state
        if state.pending is not None:  # before it is asked what is due
            self.points.resume(state.pending)
        if self._orders:
            self._taking = self._orders.popleft()
            try:
                self._carry_out(self._taking)
            finally:
                self._taking = None
            return 0.0
        if state.line is None or state.resting or self.stream.shipper is None:
            return TURN
        if state.line.begun is None:
            self.points.take(AFTER_GAP if state.ended else FIRST)
        elif self._overdue(state.point_at):
            self.points.take(DAILY)
        else:
            return TURN
        self._sync.wake.set()
        self.store_all()
        return 0.0

    def _overdue(self, at: datetime | None) -> bool:
        every = self.work.policy.base_every * (LATE if self._hearth else 1)
        # A point from the future: some clock was wrong. It says nothing about when the next is due.
        age = (datetime.now(UTC) - at).total_seconds() if at is not None else every
        return age >= every or age < -every

    def _carry_out(self, order: Order) -> None:
        """Take the point that was ordered. What can pass is tried again as long as nobody stops us."""
        memory = self.work.memory
        if memory.state.resting:
            with memory.changing() as state:
                state.resting = False
            self._wait_for_line()
        point = self._final_point() if order.kind == FINAL else ""
        point = point or self._take_ordered(order)
        self._moment_now()
        if order.kind == FINAL and self.moments.soon.is_set():
            return  # stopped before all of it was stored: whoever ordered it asks again
        done = OrderReport(id=order.id, state="done", point=point)
        with memory.changing() as state:
            state.orders.append(done)
            if order.kind == FINAL:
                state.resting, state.final = True, done
        self.work.progress.say("order-done", order=order.id, kind=order.kind, point=point)
        self._sync.wake.set()

    def _final_point(self) -> str:
        """Return a final backup that is whole already, of the line that is being written; nothing if there is none."""
        state = self.work.memory.state
        if state.line is None or state.point_at is None:
            return ""
        same = (state.point_kind, state.point_line) == (FINAL, state.line.id)
        return state.point if same and abs(datetime.now(UTC) - state.point_at) < ONE_FINAL else ""

    def _take_ordered(self, order: Order) -> str:
        """Take the point of an order and return its id. What can pass is tried again until we are stopped."""
        wait = 1.0
        while True:
            try:
                return self.points.take(order.reason).id
            except Exception as error:
                if self.work.stop.is_set():
                    raise
                self.work.faults.met(self._point.name, error)
                self.work.stop.wait(wait)
                wait = min(wait * 2, 60.0)

    def _moment_now(self) -> None:
        """Have all WAL and media that there are now stored and named."""
        self.store_all()
        while self.moments.soon.is_set() and not self.work.stop.wait(0.1):
            pass

    def _wait_for_line(self) -> None:
        while self.stream.shipper is None and not self.work.stop.wait(0.2):
            pass

    # --- Hearth --------------------------------------------------------------------------------------------------

    def _tell(self) -> float:
        """Report, and take orders."""
        assert self._hearth is not None  # noqa: S101 (for the type checker: the loop runs only with one)
        report = self.report()
        try:
            answer = sync(self._hearth, report)
        except (SecurityError, msgspec.ValidationError) as error:
            raise HearthAwayError(f"Hearth was not told how backups are; they go on. {error}") from None
        self._heard(report, answer)
        return self.work.policy.sync_every

    def report(self) -> Report:
        """Return how things are."""
        memory, shipper = self.work.memory, self.stream.shipper
        with memory.reading() as state:
            lines = [
                LineReport(id=each.line, begun=each.begun, until=each.until, ended=each.reason)
                for each in state.ended
                if not each.told
            ]
            if (line := state.line) is not None:
                lines.append(LineReport(id=line.id, begun=line.begun, until=line.until, moments=line.number))
            taking = self._taking
            orders = list(state.orders)
            if taking is not None:
                orders.append(OrderReport(id=taking.id, state="taken", done_bytes=self.points.taker.passed))
            return Report(
                at=datetime.now(UTC),
                lines=tuple(lines),
                media_until=state.media_until,
                spool_bytes=shipper.waiting_bytes if shipper else 0,
                stored_bytes=state.stored_bytes,
                points=tuple(state.untold),
                orders=tuple(orders),
                fault=self.work.faults.oldest,
            )

    def _heard(self, report: Report, answer: Answer) -> None:
        """Forget what Hearth knows now, and take its orders."""
        open_orders = {order.id for order in answer.orders}
        told = {line.id for line in report.lines}
        heard = {order.id for order in report.orders}
        with self.work.memory.changing() as state:
            state.untold = [each for each in state.untold if each.manifest.id not in answer.known]
            state.orders = [each for each in state.orders if each.id not in heard or each.id in open_orders]
            for each in state.ended:
                each.told = each.told or each.line in told
        for order in answer.orders:
            self.order(order)

    # --- for whoever watches this process ------------------------------------------------------------------------

    def _leave_status(self) -> None:
        state, fault = self.work.memory.state, self.work.faults.oldest
        line = state.line
        status = {
            "line": line.id if line else "",
            "until": line.until if line else None,
            "point": state.point,
            "point_at": state.point_at,
            "spool_bytes": self.stream.shipper.waiting_bytes if self.stream.shipper else 0,
            "fault_code": fault.code if fault else "",
            "fault": fault.text if fault else "",
        }
        if status != self._status:
            with contextlib.suppress(OSError):
                self.work.memory.tell(msgspec.to_builtins(status))
                self._status = status
