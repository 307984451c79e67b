"""What every store of backups does: keep sealed objects under names, give them back, list them. Imports no Django.

A store sees ciphertext and names alone. Names are relative, of `[A-Za-z0-9._/-]` (`stores.names`), unique for ever: no
object is ever written again under a name that was used, so whoever may only `put` can't change or hide an older backup.
An object's name is no folder of another's: with `a/b` there is no `a`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol


class StoreError(Exception):
    """A store did not do what it was asked. The text is for a person: what happened, what it means, what to do.

    `code` is a named reason: `StoreFull`, `StoreDenied`, `StoreMissing` (bucket or folder), `StoreAway` (no answer, or
    an error of its own), `StoreDamaged` (other bytes than were written), `StoreMisused`. `retry` says whether the same
    call can succeed later without anybody's doing.
    """

    def __init__(self, message: str, *, code: str = "StoreAway", retry: bool = True) -> None:
        super().__init__(message)
        self.code = code
        self.retry = retry


class NoSuchObject(StoreError):
    """Nothing lies under that name."""

    def __init__(self, name: str) -> None:
        super().__init__(f"The object {name} is not in the store.", code="NoSuchObject", retry=False)
        self.name = name


class ObjectExists(StoreError):
    """Something lies under that name already, and stays as it is."""

    def __init__(self, name: str) -> None:
        super().__init__(f"The object {name} is in the store already; it was not touched.", code="Exists", retry=False)
        self.name = name


@dataclass(frozen=True, slots=True)
class Stored:
    """One object as the store has it. `size` in bytes."""

    name: str
    size: int
    mark: str
    """What a listing tells again without reading the object: an ETag. Empty where listings tell the size alone."""
    sha256: str = ""
    """Of the bytes as stored, in hex; known to `put` alone, empty in listings."""
    modified: datetime | None = None


@dataclass(frozen=True, slots=True)
class Finding:
    """What `check` found about a protection, and in `text` what that means.

    `state` is `on`, `off`, `unsupported`, or `unknown` where the credentials may not ask.
    """

    what: str
    state: str
    text: str


class Store(Protocol):
    """A folder or a bucket, below one prefix. Safe for several threads. Calls block and raise `StoreError`."""

    @property
    def name(self) -> str:
        """Stable and unique, such as the region's code."""

    def put(self, name: str, pieces: Iterable[bytes | memoryview]) -> Stored:
        """Keep the pieces, put together, under a new name. Until it returns nothing is seen under that name.

        Memory is bounded whatever their number. What `pieces` raises passes through, and nothing is kept. Refuses a
        name that is taken (`ObjectExists`). After it returns the bytes survive a loss of power.
        """

    def get(self, name: str, *, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        """Return the object's bytes from `offset` on, `length` of them at most, in pieces of 1 MiB or less.

        What goes wrong, `NoSuchObject` too, is raised when the first piece is asked for, or a later one: what was given
        before was right then. Beyond the object's end there is nothing. Close the iterator to leave early.
        """

    def head(self, name: str) -> Stored:
        """Return what is known of an object without reading it, or raise `NoSuchObject`."""

    def listing(self, prefix: str = "") -> Iterator[Stored]:
        """Return all objects whose names begin with `prefix`, in the order of their names."""

    def delete(self, names: Iterable[str]) -> None:
        """Remove objects; those that are gone already are no fault. An agent's credentials can't do this."""

    def sweep(self) -> int:
        """Remove what killed writers left unfinished, and return how many; what is being written is left alone."""

    def check(self) -> list[Finding]:
        """Return which protections it has: versions, lifecycle, object lock, encryption at rest, write-once names."""


class Erasable(Store, Protocol):
    """A store that can also take objects away for good."""

    def erase(self, names: Iterable[str]) -> None:
        """Remove objects with every older version of them; locked ones are `StoreDenied`, and stay."""
