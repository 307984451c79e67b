"""A region with two stores, and a server's backups in the first of them. Without Django, which is not set up yet."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from backups.models import Store
    from tenants.models import Server
    from tests.backups.control.looks import Kept


def copies() -> Any:
    return importlib.import_module("tests.backups.control.copying.copies")


@pytest.fixture(autouse=True)
def unseen(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """A thread of its own would not see a lease that the test's transaction has not committed."""
    if "keeps" not in request.node.name:
        monkeypatch.setattr("backups.copying.leases.RENEW_EVERY", 3600.0)


@pytest.fixture
def kept(server: Server, tmp_path: Path) -> Kept:
    """Three days of backups, and nothing copied yet."""
    found: Kept = copies().kept(server, tmp_path / "disk")
    return found


@pytest.fixture
def second(kept: Kept, tmp_path: Path) -> Store:
    """The region's second store: a folder on another disk."""
    found: Store = copies().second(tmp_path / "other-disk")
    return found
