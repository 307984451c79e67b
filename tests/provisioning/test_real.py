"""From wanted to ready and through each verb with the real agent, a real PostgreSQL and a real Synapse."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from provisioning import engine, fleet, observer, services
from provisioning.models import Operation, ServerStatus
from provisioning.providers.base import ProviderError
from provisioning.providers.local.paths import agent_socket, runtime_dir
from provisioning.providers.local.provider import LocalProvider
from tenants.models import Server
from tenants.releases import newest
from tests.services import wait

pytestmark = pytest.mark.django_db(transaction=True)
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def agent(monkeypatch: pytest.MonkeyPatch, db: None) -> Iterator[LocalProvider]:
    """The agent of this machine, on a state folder of its own, for the region `local`."""
    state = Path(tempfile.mkdtemp(prefix="hearth-real-", dir="/tmp"))
    state.chmod(0o711)
    words = ["--state", str(state), "--environments", str(ROOT / "var" / "test" / "environments")]
    process = subprocess.Popen([sys.executable, "-m", "provisioning.providers.local.agent", *words], cwd=ROOT)
    provider = LocalProvider(agent_socket(state))

    def answers() -> bool:
        try:
            provider.observe()
        except ProviderError:
            return False
        return True

    try:
        wait(answers)
        fleet.seed_region()
        monkeypatch.setitem(fleet.MAKERS, "local", lambda: provider)
        yield provider
    finally:
        process.terminate()
        process.wait(30)
        shutil.rmtree(runtime_dir(state), ignore_errors=True)
        shutil.rmtree(state, ignore_errors=True)


def carry_out(server: Server, **changes: Any) -> Operation:
    """Want something else, and do what that takes."""
    if changes:
        Server.objects.filter(pk=server.pk).update(generation=server.generation + 1, **changes)
        server.refresh_from_db()
    operation = services.reconcile(server.pk)
    assert operation is not None
    began = time.monotonic()
    engine.run(operation.pk)
    operation.refresh_from_db()
    assert operation.state == "succeeded", (operation.error, list(operation.events.values_list("message", flat=True)))
    assert time.monotonic() - began < 60
    return operation


def sign_in(server: Server, password: str) -> httpx.Response:
    url = ServerStatus.objects.get(server=server).homeserver_url
    body = {
        "type": "m.login.password",
        "identifier": {"type": "m.id.user", "user": "admin"},
        "password": password,
    }
    return httpx.post(f"{url}/_matrix/client/v3/login", json=body, trust_env=False, timeout=30)


def status(server: Server) -> tuple[str, str]:
    observer.observe()
    found = ServerStatus.objects.get(server=server)
    return found.phase, found.reason


def test_the_life_of_a_server(server: Server, agent: LocalProvider, alice: object) -> None:
    Server.objects.filter(pk=server.pk).update(version=newest().version)
    server.refresh_from_db()
    carry_out(server)
    assert status(server) == ("ready", "")
    first = services.reveal_password(alice, server=server)
    assert sign_in(server, first).status_code == 200

    carry_out(server, password_resets=1)
    second = services.reveal_password(alice, server=server)
    assert sign_in(server, first).status_code == 403
    assert sign_in(server, second).status_code == 200

    carry_out(server, restarts=1)
    assert status(server) == ("ready", "")

    carry_out(server, desired="suspended", suspend_message="Back on Monday.")
    assert status(server) == ("suspended", "Suspended")
    refused = sign_in(server, second)
    assert refused.status_code == 403
    assert "Back on Monday." in refused.text

    carry_out(server, desired="running", suspend_message="")
    assert sign_in(server, second).status_code == 200

    carry_out(server, desired="deleted")
    server.refresh_from_db()
    assert server.deleted
    assert agent.observe() == {}


def test_a_cancelled_create_is_deleted_cleanly(server: Server, agent: LocalProvider, alice: object) -> None:
    operation = services.reconcile(server.pk)
    assert operation is not None
    services.cancel_operation(alice, operation=operation)
    carry_out(server, desired="deleted")
    server.refresh_from_db()
    assert server.deleted
