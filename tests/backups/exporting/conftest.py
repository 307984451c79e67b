"""Alice's server in a region whose provider does what the test scripts, with backups in a real store."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.provisioning.conftest import make_server, organisation, provider, server  # noqa: F401 (fixtures)

if TYPE_CHECKING:
    from tenants.models import Server
    from tests.provisioning.fakes import ScriptedProvider


@pytest.fixture
def berry(server: Server, provider: ScriptedProvider, tmp_path: Path) -> Server:  # noqa: F811 (a fixture's name)
    from backups.engine.stores.folder import FolderStore
    from backups.models import Store
    from tests.backups.restoring import restorable

    found = restorable.make_restorable(server)
    Store.objects.update(folder=str(tmp_path))
    FolderStore("here", tmp_path / str(found.pk), make=True).check()
    provider.calls.clear()
    return found
