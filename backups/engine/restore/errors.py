"""Why a restore can't be done, or stopped."""

from __future__ import annotations

from collections.abc import Iterable


class RestoreError(Exception):
    """The restore failed. The text is for a person: what happened, what it means for the data, what to do next.

    `code` is a named reason: `NotRestorable` (no backup of that moment), `Damaged` (`objects` are not what was stored,
    `points` need them), `Busy` (somebody restores into this folder), `NotEmpty`, `DiskFull`, `WrongVersion`,
    `WrongSigningKey`, `GrantEnded`, `KeysAway`, `StoreAway` and the store's other codes, `ReplayFailed`,
    `ReplayStuck`, `SettleFailed`. `retry` says whether the same call may succeed later.
    """

    def __init__(
        self,
        message: str,
        *,
        code: str,
        retry: bool = False,
        objects: Iterable[str] = (),
        points: Iterable[str] = (),
    ) -> None:
        super().__init__(message)
        self.code = code
        self.retry = retry
        self.objects = tuple(objects)
        self.points = tuple(points)


class Cancelled(RestoreError):
    """Somebody wanted it to end. What was fetched stays, for a second call to go on with or whoever removes it."""

    def __init__(self) -> None:
        super().__init__("The restore was cancelled. Nothing that ran before was touched.", code="Cancelled")
