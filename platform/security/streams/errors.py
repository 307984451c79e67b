"""What can go wrong with an encrypted stream. Every error names the object; none holds a secret."""

from __future__ import annotations


class StreamError(Exception):
    """The root of them all: `name` is the object, `text` says what happened and what to do.

    Made of two plain strings, so that it survives pickling on its way from a worker.
    """

    def __init__(self, name: str, text: str) -> None:
        super().__init__(name, text)
        self.name = name
        self.text = text

    def __str__(self) -> str:
        return f"{self.name}: {self.text}"


class UnknownFormat(StreamError):
    """This is no stream of Hearth's, or one of a later format."""


class WrongKey(StreamError):
    """The data key is not the one this stream was encrypted with (or the header's salt or commitment was changed)."""


class WrongContext(StreamError):
    """The stream belongs to another object, organisation or restore point (or its header was changed)."""


class Corrupted(StreamError):
    """A chunk is not what was written at this place of this stream."""


class Truncated(StreamError):
    """The stream stops before its final chunk."""


class TooLong(StreamError):
    """The stream would need more chunks than its counter can number."""


class BadContext(StreamError):
    """A name in the associated data is empty, too long or not text."""


class Unfinished(StreamError):
    """A writer was closed before `finish`: what it wrote has no final chunk and can't be read as whole."""
