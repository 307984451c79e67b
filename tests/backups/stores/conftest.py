"""The stores that the contract is tested on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from backups.engine.stores.base import Store
from backups.engine.stores.connection import Bucket
from backups.engine.stores.folder import FolderStore
from backups.engine.stores.s3 import S3Store
from tests.backups.s3_faults import S3Faults
from tests.backups.s3_servers import S3Server, open_store


@pytest.fixture(params=["folder", "minio", "plain_s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """An empty store of each kind."""
    if request.param == "folder":
        yield FolderStore("near", tmp_path / "store", make=True)
        return
    opened = open_store(request.getfixturevalue(request.param).new_prefix())
    yield opened
    opened.close()


@pytest.fixture
def server(request: pytest.FixtureRequest) -> S3Server:
    """MinIO, or what a test names (`EACH_S3`)."""
    found: S3Server = request.getfixturevalue(getattr(request, "param", "minio"))
    return found


@pytest.fixture
def where(server: S3Server) -> Bucket:
    return server.new_prefix()


@pytest.fixture
def proxy(server: S3Server) -> Iterator[S3Faults]:
    with S3Faults(server.endpoint) as started:
        yield started


@pytest.fixture
def direct(where: Bucket) -> Iterator[S3Store]:
    """The same place without the proxy."""
    opened = open_store(where)
    yield opened
    opened.close()
