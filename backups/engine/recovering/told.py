"""How far a recovery is, told over HTTP to the operator. Imports no Django.

    GET  /livez, /readyz      200 while the process answers
    GET  /status              `Status` as JSON

It has no secret and no password; the network policy of the pod lets nobody in but Hearth's operator.
"""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager
from http import HTTPStatus
from typing import Any, ClassVar, Literal

import msgspec

from backups.engine.answering import Handler, answered
from backups.engine.progress import Progress
from backups.engine.restore.errors import RestoreError

State = Literal["running", "serving", "done", "failed"]


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """How far it is. `serving`: all is restored, and the temporary database can be copied."""

    revision: str
    state: State = "running"
    step: str = "begin"
    done_bytes: int = 0
    total_bytes: int = 0
    seconds_left: float | None = None
    code: str = ""
    """Of one that failed, or of what is tried again: a named reason, and a text for a person."""
    text: str = ""
    retry: bool = False
    result: dict[str, Any] = {}


class Told(Progress):
    """Progress that can be asked for, too. Safe for several threads."""

    def __init__(self, revision: str) -> None:
        super().__init__()
        self._guard = threading.Lock()
        self._status = Status(revision=revision)

    @property
    def status(self) -> Status:
        """How far it is now."""
        with self._guard:
            return self._status

    def say(self, event: str, **values: Any) -> None:
        """Tell one event; those of a restore change the status."""
        super().say(event, **values)
        if event == "restore":
            known = {name: values[name] for name in ("step", "done_bytes", "total_bytes") if name in values}
            self._change(**known, seconds_left=values.get("seconds_left"), code="", text="")

    def serves(self, result: dict[str, Any]) -> None:
        """All is restored, and the temporary database takes connections."""
        self._change(state="serving", step="copy", seconds_left=None, code="", text="", result=result)

    def interrupted(self, error: RestoreError) -> None:
        """Something passing is in the way; it is tried again."""
        self._change(state="running", code=error.code, text=str(error), retry=True)

    def done(self, result: dict[str, Any]) -> None:
        """There is nothing left to do."""
        self._change(state="done", seconds_left=None, code="", text="", result=result)

    def failed(self, error: RestoreError) -> None:
        """It has ended without what was wanted."""
        super().say("restore-failed", code=error.code, text=str(error), retry=error.retry)
        self._change(state="failed", seconds_left=None, code=error.code, text=str(error), retry=error.retry)

    def _change(self, **values: Any) -> None:
        with self._guard:
            self._status = msgspec.structs.replace(self._status, **values)


class _Handler(Handler):
    told: ClassVar[Told]

    def do_GET(self) -> None:  # noqa: N802 (http.server names it)
        if self.path in ("/livez", "/readyz"):
            self.answer(HTTPStatus.OK, b"ok")
        elif self.path == "/status":
            self.answer(HTTPStatus.OK, msgspec.json.encode(self.told.status))
        else:
            self.answer(HTTPStatus.NOT_FOUND, b"")


def answering(told: Told, host: str, port: int) -> AbstractContextManager[int]:
    """Answer while the block lasts; give the port. Raises `OSError`."""
    return answered(type("Handler", (_Handler,), {"told": told}), host, port)
