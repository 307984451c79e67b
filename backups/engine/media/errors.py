"""What can go wrong with media."""

from __future__ import annotations


class MediaError(Exception):
    """Media can't be read, or an index of them is not right. The text is for a person.

    `code` is a named reason: `MediaAway` (folder or bucket), `MediaDamaged` (what was stored is not what is read).
    """

    def __init__(self, message: str, *, code: str = "MediaAway") -> None:
        super().__init__(message)
        self.code = code


class Stopped(Exception):
    """The run was told to stop. Nothing of it counts; the next one does it again."""
