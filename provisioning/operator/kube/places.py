"""Who may send the next request: so many at once, in two lanes, and nobody is passed over for long.

When hundreds of servers are changed at once, the API server is busy taking the changes and is late in telling of them.
Whatever else was asked of it meanwhile would make it later, so while changes keep coming the patient wait.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator, Callable

PATIENCE = 10.0  # seconds for which the urgent may keep the patient waiting
SHARE = 4  # of that many places, one goes to a patient request that has waited longer
MANY, WHILE = 16, 3.0  # so many urgent requests in so many seconds, and more are expected
PAUSE, LONGEST_PAUSE = 0.25, 1.0  # seconds without an urgent request after which no more are expected
GAPS = 4.0  # a pause is as long as so many of the times between two, because a busy API server tells of them slowly


class Places:
    """Places for requests under way. The urgent are given theirs first; in each lane first come is first served."""

    def __init__(self, count: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._left, self._clock = count, clock
        self._lanes: tuple[deque[tuple[float, asyncio.Future[None]]], ...] = (deque(), deque())
        self._given = 0
        self._urgent: deque[float] = deque(maxlen=MANY)
        """When the last urgent requests came."""
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        """Return how many wait."""
        return sum(map(len, self._lanes))

    @contextlib.asynccontextmanager
    async def take(self, *, urgent: bool = False) -> AsyncIterator[None]:
        """Wait for a place and hold it."""
        if urgent:
            self._urgent.append(self._clock())
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._lanes[0 if urgent else 1].append((self._clock(), place))
        self._give()
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():
                self._left += 1
                self._give()
            raise
        try:
            yield
        finally:
            self._left += 1
            self._give()

    def _give(self) -> None:
        """Give out the places that are free."""
        while self._left and (place := self._next()) is not None:
            if not place.done():
                self._left -= 1
                place.set_result(None)

    def _next(self) -> asyncio.Future[None] | None:
        urgent, patient = self._lanes
        if not (urgent or patient):
            return None
        now = self._clock()
        late = bool(patient) and now - patient[0][0] > PATIENCE
        if urgent:
            self._given += 1
            lane = patient if late and self._given % SHARE == 0 else urgent
        elif late or not self._expected(now):
            lane = patient
        else:
            self._look_again()
            return None
        return lane.popleft()[1]

    def _expected(self, now: float) -> bool:
        """Say whether more urgent requests are about to come."""
        came = self._urgent
        if len(came) < MANY or now - came[0] >= WHILE:
            return False
        pause = GAPS * (came[-1] - came[0]) / (MANY - 1)
        return now - came[-1] < min(LONGEST_PAUSE, max(PAUSE, pause))

    def _look_again(self) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(PAUSE, self._due)

    def _due(self) -> None:
        self._timer = None
        self._give()
