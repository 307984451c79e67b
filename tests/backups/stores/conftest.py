"""The stores that the contract is tested on."""

from __future__ import annotations

from pathlib import Path

import pytest

from backups.engine.stores.base import Store
from backups.engine.stores.folder import FolderStore


@pytest.fixture(params=["folder"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """An empty store of each kind."""
    return FolderStore("near", tmp_path / "store", make=True)
