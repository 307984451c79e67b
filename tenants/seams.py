"""What higher layers register here, so that `tenants` never imports them."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class RegionChoice:
    """A place where new servers can be put, as the sign-up pages show it."""

    code: str
    name: str
    base_domain: str


_regions: list[Callable[[], list[RegionChoice]]] = []
_places: list[Callable[[str], None]] = []
_wake: list[Callable[[uuid.UUID], None]] = []


def register_regions(source: Callable[[], list[RegionChoice]]) -> None:
    """Let `source` say which regions are open. Called once, by the app that owns regions."""
    _regions.append(source)


def open_regions() -> list[RegionChoice]:
    """Return the regions that take new servers, in their order."""
    return [choice for source in _regions for choice in source()]


def register_places(taker: Callable[[str], None]) -> None:
    """Let `taker(region_code)` refuse a server that its region has no room for. It runs in the creating transaction."""
    _places.append(taker)


def take_place(code: str) -> None:
    """Take a place in the region, or raise `Refused`."""
    for taker in _places:
        taker(code)


def register_wake(callback: Callable[[uuid.UUID], None]) -> None:
    """Have `callback(server_id)` called after each commit that raised a server's generation. It is only a hint."""
    _wake.append(callback)


def wake(server_id: uuid.UUID) -> None:
    """Tell whoever registered that a server's desired state changed."""
    for callback in _wake:
        callback(server_id)
