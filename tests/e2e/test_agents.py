"""A server's agent and Hearth speak to one another as soon as the server is ready, in the whole of `make run`."""

from __future__ import annotations

import pytest

from security.datakeys.client import DataKeys
from security.transport.client import InternalClient
from tests.e2e.conftest import OneServer
from tests.services import wait

pytestmark = [pytest.mark.xdist_group("e2e"), pytest.mark.timeout(300)]


def test_the_agent_of_a_new_server_gets_a_data_key(server: OneServer) -> None:
    """And a new identity at Hearth's next look where it lost the one it had, as servers from before had none."""
    hearth = server.hearth
    identity = hearth.state / "servers" / server.path.split("/")[4] / "identity"
    pair, address = identity / "agent.pem", (identity / "address").read_text().strip()
    assert address == f"https://127.0.0.1:{hearth.internal_port}"
    with InternalClient(address, pair, pair, identity / "trust.pem") as client:
        found, key = DataKeys(client).fresh("backup.base", "base/1")
        assert key.id == found
        pair.unlink()
        wait(pair.exists, seconds=60)
        assert DataKeys(client).fresh("backup.base", "base/2")
