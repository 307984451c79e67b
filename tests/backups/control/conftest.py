"""Alice's organisation with a server, as tenants' tests have it."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from backups.engine import names
from backups.engine.manifest import Point, Ref

if TYPE_CHECKING:
    from tenants.models import Server

from tests.tenants.conftest import acme, make_server, plans, seams_of_test  # noqa: F401 (fixtures)

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)


@pytest.fixture
def server(make_server: Callable[[str], Server]) -> Server:  # noqa: F811
    return make_server("chat")


@pytest.fixture
def point() -> Callable[..., Point]:
    """Return a function that makes a server's manifest of a restore point."""

    def make(server: Server, at: datetime = NOON, **changes: Any) -> Point:
        identity = names.new_id(at)
        ref = Ref(name=names.base(identity), size=10, sha256="0" * 64, key=uuid.uuid4(), part_of=identity)
        words: dict[str, Any] = {
            "organisation": str(server.organisation_id),
            "server": str(server.pk),
            "server_name": server.server_name,
            "synapse_version": "1.149.1",
            "signing_key_id": "ed25519:a",
            "postgres_version": 180004,
            "system": "7",
            "line": names.new_id(at),
            "timeline": 1,
            "begin": "0/2000028",
            "end": "0/2000100",
        }
        return Point(id=identity, at=at, key=uuid.uuid4(), base=ref, configuration=ref, **words | changes)

    return make
