"""What the engine and Hearth tell each other, every minute or when something happened. Imports no Django.

The engine calls (`POST /v1/backups/sync` on the internal listener); Hearth answers with what there is to do. Both sides
may lose any message: a report says how things are, not what changed, and an order stays in the answers until a report
says that it ended. Times are the database's, with their zone; sizes in bytes.
"""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import Any, Literal, Protocol

import msgspec

from backups.engine.manifest import Point

SYNC = "/v1/backups/sync"
EVERY = 60.0
"""Seconds between two reports when nothing happens."""


class Fault(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is wrong now. `code` is a named reason, such as `StoreFull`, `SlotLost`, `DatabaseDown`."""

    code: str
    text: str
    since: datetime


class LineReport(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A line and the moments between which any second can be restored."""

    id: str
    begun: datetime | None = None
    """None before its first base backup is whole."""
    until: datetime | None = None
    """Every commit up to here lies in the store."""
    ended: str = ""
    """Why it ended, such as `SlotLost`; empty while it is written."""
    moments: int = 0
    """How many moments of it are stored; 0 where that is not told. The store alone could not say that one is gone."""


class OrderReport(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How far an order is."""

    id: uuid.UUID
    state: Literal["taken", "done", "failed"]
    done_bytes: int = 0
    total_bytes: int = 0
    point: str = ""
    """The restore point that came of it."""
    error: str = ""


class PointReport(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A restore point that is whole. Told again until Hearth says that it knows it."""

    manifest: Point
    seconds: float
    """How long it took."""
    stored_bytes: int
    """Of its own objects."""
    listed: bool = False
    """Whether all its objects were found in a listing afterwards, with the right sizes and marks."""
    damage: str = ""
    """What that listing lacked."""


class Report(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the backups of one server are."""

    at: datetime
    lines: tuple[LineReport, ...] = ()
    """The one that is written, and those that ended since Hearth last answered."""
    media_until: datetime | None = None
    spool_bytes: int = 0
    stored_bytes: int = 0
    """Written to the store since the engine's state began."""
    points: tuple[PointReport, ...] = ()
    orders: tuple[OrderReport, ...] = ()
    fault: Fault | None = None


class Order(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Take a base backup. After a `final` one the engine stores all WAL and media that is left."""

    id: uuid.UUID
    kind: Literal["backup", "final"]
    reason: str
    """The restore point's kind, such as `daily` or `manual`."""


class Answer(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What there is to do."""

    orders: tuple[Order, ...] = ()
    known: tuple[str, ...] = ()
    """Restore points that Hearth has written down; they need not be told again."""


class Caller(Protocol):
    """`security.transport.client.InternalClient`."""

    def post(self, path: str, body: dict[str, Any], *, repeatable: bool = False) -> dict[str, Any]: ...


def sync(hearth: Caller, report: Report) -> Answer:
    """Tell Hearth how things are and return what it wants. Raises what the client raises, `CallRefused` among it."""
    answer = hearth.post(SYNC, msgspec.to_builtins(report), repeatable=True)
    return msgspec.convert(answer, Answer)
