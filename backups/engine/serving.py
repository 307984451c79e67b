"""How an engine in a pod is asked, over HTTP: whether it lives, how backups are, and for the last of them. No Django.

    GET  /livez               200 while the process answers
    GET  /readyz              200 while the server is backed up, else 503 and why
    GET  /status              `Status` as JSON
    POST /store-all?id=...    store all that there is now; `stored` says the id once that is done. 202 and the status
    POST /final?id=<uuid>     take the final backup, once for each id, and rest. 202 and the status

It has no secret and no password: whoever reaches it learns how backups are, and can have one more of them taken. The
network policy of the pod lets nobody in but Hearth's operator.
"""

from __future__ import annotations

import threading
import uuid
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from http import HTTPStatus
from typing import ClassVar, Literal
from urllib.parse import parse_qs, urlsplit

import msgspec

from backups.engine.agent import FINAL, Engine
from backups.engine.answering import Handler, answered
from backups.engine.hearth import Order
from backups.engine.settings import Serve

PASSING = 120.0
"""Seconds for which a fault may pass by itself before backups are said to fail."""
LONGEST = 100
FIRST_POINT, ENDED, WRITTEN = "FirstRestorePoint", "FinalBackupTaken", "Written"


class Final(msgspec.Struct, frozen=True, kw_only=True):
    """How far the final backup is."""

    id: str
    state: Literal["waiting", "taken", "done"]
    point: str = ""
    done_bytes: int = 0


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """How backups are. `reason` is a word for a machine, `text` a sentence for a person."""

    ready: bool
    reason: str
    text: str
    line: str = ""
    until: datetime | None = None
    """Every commit up to here lies in the store."""
    point: str = ""
    """The newest restore point."""
    point_at: datetime | None = None
    stored: str = ""
    """The id of the last `store-all` that is done."""
    final: Final | None = None


class Watched:
    """One engine, as others see it. Safe for several threads."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lock = threading.Lock()
        self._wanted = self._stored = ""
        self._begun = False
        self._final = ""

    def store_all(self, identity: str) -> None:
        """Have everything stored that there is now."""
        with self._lock:
            if identity not in (self._wanted, self._stored):
                self._wanted, self._begun = identity, False
        self._go_on()

    def final(self, identity: uuid.UUID) -> None:
        """Have the final backup taken, unless that order is known."""
        self._final = str(identity)
        self._engine.order(Order(id=identity, kind="final", reason=FINAL))

    def status(self) -> Status:
        """Return how backups are now."""
        self._go_on()
        memory = self._engine.work.memory
        with memory.reading() as state:
            ready, reason, text = self._judged()
            return Status(
                ready=ready,
                reason=reason,
                text=text,
                line=state.line.id if state.line else "",
                until=state.line.until if state.line else None,
                point=state.point,
                point_at=state.point_at,
                stored=self._stored,
                final=self._last(),
            )

    def _judged(self) -> tuple[bool, str, str]:
        state, fault = self._engine.work.memory.state, self._engine.work.faults.oldest
        if state.resting:
            return False, ENDED, "The final backup is whole. Nothing is stored any more."
        if fault is not None and (datetime.now(UTC) - fault.since).total_seconds() >= PASSING:
            return False, fault.code, fault.text
        if state.line is None or state.line.begun is None:
            detail = f" {fault.text}" if fault is not None else ""
            return False, FIRST_POINT, f"The first restore point is being taken.{detail}"
        return True, WRITTEN, f"Restore point {state.point} and all that followed it are stored."

    def _last(self) -> Final | None:
        done, taking = self._engine.work.memory.state.final, self._engine.taking
        if done is not None and self._final in ("", str(done.id)):
            return Final(id=str(done.id), state="done", point=done.point)
        passed = self._engine.points.taker.passed  # of the copy before it too, for which it waits
        if taking is not None and str(taking.id) == self._final:
            return Final(id=self._final, state="taken", done_bytes=passed)
        return Final(id=self._final, state="waiting", done_bytes=passed) if self._final else None

    def _go_on(self) -> None:
        """See how far the wish to store all is: a look at the media that began before the wish does not count."""
        with self._lock:
            if not self._wanted or self._engine.moments.soon.is_set():
                return
            if self._begun:
                self._stored, self._wanted = self._wanted, ""
            else:
                self._begun = True
                self._engine.store_all()


class _Handler(Handler):
    watched: ClassVar[Watched]

    def do_GET(self) -> None:  # noqa: N802 (http.server names it)
        path = urlsplit(self.path).path
        if path == "/livez":
            self.answer(HTTPStatus.OK, b"ok")
        elif path == "/readyz":
            status = self.watched.status()
            self.answer(HTTPStatus.OK if status.ready else HTTPStatus.SERVICE_UNAVAILABLE, status.text.encode())
        elif path == "/status":
            self._tell(HTTPStatus.OK)
        else:
            self.answer(HTTPStatus.NOT_FOUND, b"")

    def do_POST(self) -> None:  # noqa: N802 (http.server names it)
        found = urlsplit(self.path)
        given = parse_qs(found.query).get("id", [""])[0]
        try:
            if not 0 < len(given) <= LONGEST or found.path not in ("/final", "/store-all"):
                raise ValueError
            if found.path == "/final":
                self.watched.final(uuid.UUID(given))
            else:
                self.watched.store_all(given)
        except ValueError:
            self.answer(HTTPStatus.BAD_REQUEST, b"")
        else:
            self._tell(HTTPStatus.ACCEPTED)

    def _tell(self, code: HTTPStatus) -> None:
        self.answer(code, msgspec.json.encode(self.watched.status()))


def served(engine: Engine, at: Serve) -> AbstractContextManager[int]:
    """Answer while the block lasts; give the port. Raises `OSError`."""
    return answered(type("Handler", (_Handler,), {"watched": Watched(engine)}), at.host, at.port)
