"""Who may send the next request: so many at once, in two lanes, and nobody is passed over for long."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator, Callable

PATIENCE = 5.0  # seconds for which the urgent may pass the patient over
SHARE = 4  # of that many places, one goes to a patient request that has waited longer


class Places:
    """Places for requests under way. The urgent are given theirs first; in each lane first come is first served."""

    def __init__(self, count: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._left, self._clock = count, clock
        self._lanes: tuple[deque[tuple[float, asyncio.Future[None]]], ...] = (deque(), deque())
        self._given = 0

    def __len__(self) -> int:
        """Return how many wait."""
        return sum(map(len, self._lanes))

    @contextlib.asynccontextmanager
    async def take(self, *, urgent: bool = False) -> AsyncIterator[None]:
        """Wait for a place and hold it."""
        if self._left and not any(self._lanes):
            self._left -= 1
        else:
            place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._lanes[0 if urgent else 1].append((self._clock(), place))
            try:
                await place
            except asyncio.CancelledError:
                if place.done() and not place.cancelled():
                    self._give()
                raise
        try:
            yield
        finally:
            self._give()

    def _give(self) -> None:
        self._left += 1
        while self._left and (place := self._next()) is not None:
            if not place.done():
                self._left -= 1
                place.set_result(None)

    def _next(self) -> asyncio.Future[None] | None:
        urgent, patient = self._lanes
        if not (urgent or patient):
            return None
        self._given += 1
        late = bool(patient) and self._clock() - patient[0][0] > PATIENCE
        lane = patient if patient and (not urgent or (late and self._given % SHARE == 0)) else urgent
        return lane.popleft()[1]
