"""The stores that the contract is tested on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from backups.engine.stores.base import Store
from backups.engine.stores.folder import FolderStore
from tests.backups.s3_servers import open_store


@pytest.fixture(params=["folder", "minio", "second_s3", "plain_s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """An empty store of each kind."""
    if request.param == "folder":
        yield FolderStore("near", tmp_path / "store", make=True)
        return
    opened = open_store(request.getfixturevalue(request.param).new_prefix())
    yield opened
    opened.close()
