"""Servers of two organisations, and who owns them."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from security.models import UnwrapGrant

ACME, OTHER = uuid.UUID(int=0xA), uuid.UUID(int=0xB)
SOURCE, TARGET, ELSEWHERE, FOREIGN = (uuid.UUID(int=number, version=4) for number in (1, 2, 3, 4))
HOLDER = uuid.UUID(int=0xC)


@pytest.fixture(autouse=True)
def servers(monkeypatch: pytest.MonkeyPatch) -> dict[uuid.UUID, uuid.UUID]:
    """Server → organisation, as a higher layer would tell. A test may move and remove some."""
    from security.keyring.seams import seams

    known = {SOURCE: ACME, TARGET: ACME, ELSEWHERE: ACME, FOREIGN: OTHER}
    monkeypatch.setattr(seams, "owner_of_server", [known.get])
    return known


@pytest.fixture
def grant(db: None) -> Callable[..., UnwrapGrant]:
    """Return a function that opens a grant: Acme restores SOURCE into TARGET, unless told otherwise."""
    from audit.services import SYSTEM
    from security.datakeys.grants import open_grant
    from security.models import UnwrapGrant

    def make(**changes: Any) -> UnwrapGrant:
        words: dict[str, Any] = {"organisation": ACME, "source": SOURCE, "target": TARGET, "fence": 1}
        words |= {"purpose": UnwrapGrant.Purpose.RESTORE, "holder": HOLDER, "reason": "Alice restores"}
        return open_grant(SYSTEM, **words | changes)

    return make
