"""What a verb answers when it will not do what was asked."""

from __future__ import annotations


class Refused(Exception):
    """A verb did nothing; the message says why and what to do next. `field` names the part of the form it is about."""

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.field = field


class OutOfDate(Refused):
    """The page that asked was made before somebody else's change."""

    def __init__(self) -> None:
        super().__init__(
            "This page is out of date: the server was changed after it was opened. Nothing was done. "
            "Look at the server as it is now, and choose again."
        )
