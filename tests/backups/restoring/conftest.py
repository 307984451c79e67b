"""Alice's server in a region whose provider does what the test scripts, with backups of some days."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.backups.control.conftest import point  # noqa: F401 (a fixture)
from tests.provisioning.conftest import make_server, organisation, provider, server  # noqa: F401 (fixtures)

if TYPE_CHECKING:
    from tenants.models import Server
    from tests.provisioning.fakes import ScriptedProvider


@pytest.fixture
def berry(server: Server, provider: ScriptedProvider) -> Server:  # noqa: F811 (a fixture's name)
    from tests.backups.restoring import restorable

    found = restorable.make_restorable(server)
    provider.calls.clear()
    return found
