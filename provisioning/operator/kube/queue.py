"""Which key is worked on next: each at most once at a time, several wishes for the same key as one, nobody starved."""

from __future__ import annotations

import asyncio
import random
from collections import deque

SOON = 0.001  # uvloop gives a wish for at once no time, and then it can't be compared with the next one
SHARE = 4  # of that many turns, one goes to the patient even when the urgent never end


class WorkQueue:
    """Keys in two lanes: what a person waits for (`urgent`), and all else. A key that failed comes back later."""

    def __init__(self, *, first: float = 0.2, longest: float = 120.0) -> None:
        self._lanes: tuple[deque[str], deque[str]] = (deque(), deque())
        self._waiting: dict[str, bool] = {}
        self._working: set[str] = set()
        self._again: dict[str, bool] = {}
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._failures: dict[str, int] = {}
        self._turn = 0
        self._first, self._longest = first, longest
        self._filled = asyncio.Event()

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def working(self) -> int:
        """How many keys are being worked on."""
        return len(self._working)

    @property
    def later(self) -> int:
        """How many keys wait for their time."""
        return len(self._timers)

    def add(self, key: str, *, urgent: bool = False) -> None:
        """Wish for a turn. One that is being worked on gets another turn afterwards."""
        if key in self._working:
            self._again[key] = urgent or self._again.get(key, False)
        elif key not in self._waiting:
            self._waiting[key] = urgent
            self._lanes[0 if urgent else 1].append(key)
            self._filled.set()
        elif urgent and not self._waiting[key]:
            # Its place in the patient lane is passed over when it comes up.
            self._waiting[key] = True
            self._lanes[0].append(key)

    def add_after(self, key: str, seconds: float) -> None:
        """Wish for a turn in a while; the earliest such wish counts."""
        loop = asyncio.get_running_loop()
        seconds = max(seconds, SOON)
        held = self._timers.get(key)
        if held is not None:
            if held.when() <= loop.time() + seconds:
                return
            held.cancel()
        self._timers[key] = loop.call_later(seconds, self._due, key)

    def _due(self, key: str) -> None:
        self._timers.pop(key, None)
        self.add(key)

    def failed(self, key: str, *, least: float = 0.0, longest: float = 0.0) -> float:
        """Wish for a turn after a back-off that doubles with each failure in a row; return its seconds."""
        count = self._failures[key] = self._failures.get(key, 0) + 1
        most = min(longest or self._longest, self._first * 2.0 ** min(count - 1, 16))
        seconds = max(least, most * random.uniform(0.7, 1.0))  # noqa: S311 (spreads load, keeps no secret)
        self.add_after(key, seconds)
        return seconds

    def succeeded(self, key: str) -> None:
        """Forget its failures."""
        self._failures.pop(key, None)

    def forget(self, key: str) -> None:
        """Forget all about a key that is gone."""
        self._failures.pop(key, None)
        if held := self._timers.pop(key, None):
            held.cancel()

    async def get(self) -> str:
        """Return the next key, once there is one. It must be given back with `done`."""
        while True:
            while not self._waiting:
                self._filled.clear()
                await self._filled.wait()
            key = self._next()
            if key is not None:
                return key

    def _next(self) -> str | None:
        self._turn += 1
        urgent, patient = self._lanes
        lane = patient if patient and (not urgent or self._turn % SHARE == 0) else urgent
        key = lane.popleft()
        # Passed over: taken by its urgent wish already, or soon to be.
        if key not in self._waiting or self._waiting[key] is not (lane is urgent):
            return None
        del self._waiting[key]
        self._working.add(key)
        return key

    def done(self, key: str) -> None:
        """Give a key back."""
        self._working.discard(key)
        if key in self._again:
            self.add(key, urgent=self._again.pop(key))
