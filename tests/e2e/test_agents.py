"""A server's agent and Hearth speak to one another as soon as the server is ready, in the whole of `make run`."""

from __future__ import annotations

import pytest

from security.datakeys.client import DataKeys
from security.transport.client import InternalClient
from tests.services import wait
from tests.stack import Stack
from tests.way import Person

pytestmark = [pytest.mark.xdist_group("e2e"), pytest.mark.timeout(300)]


def test_the_agent_of_a_new_server_gets_a_data_key(hearth: Stack) -> None:
    """And a new identity at Hearth's next look where it lost the one it had, as servers from before had none."""
    person = Person(hearth, "erin@example.org")
    person.sign_up()
    path = person.create_server(person.create_organisation("Erin", "beacon"), "erin")
    person.wait_for(path)
    identity = hearth.state / "servers" / path.split("/")[4] / "identity"
    pair, address = identity / "agent.pem", (identity / "address").read_text().strip()
    assert address == f"https://127.0.0.1:{hearth.internal_port}"
    with InternalClient(address, pair, pair, identity / "trust.pem") as client:
        found, key = DataKeys(client).fresh("backup.base", "base/1")
        assert key.id == found
        pair.unlink()
        wait(pair.exists, seconds=60)
        assert DataKeys(client).fresh("backup.base", "base/2")
    person.browser.close()
