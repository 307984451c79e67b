"""A region whose provider does what the test scripts."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from accounts.models import User
    from provisioning.providers.local.provider import LocalProvider
    from tenants.models import Organisation, Server
    from tests.provisioning.fakes import ScriptedProvider

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def provider(monkeypatch: pytest.MonkeyPatch, db: None) -> Iterator[ScriptedProvider]:
    """The region `local`, run by a scripted provider."""
    from provisioning import engine, fleet
    from tests.provisioning import fakes

    fleet.seed_region()
    engine.stopping.clear()
    monkeypatch.setattr(engine, "FIRST_WAIT", 0.0)
    with fakes.scripted() as provider:
        monkeypatch.setitem(fleet.MAKERS, "local", lambda: provider)
        yield provider


@pytest.fixture
def state() -> Iterator[Path]:
    """An agent's state folder, which other users may pass."""
    from provisioning.providers.local.paths import runtime_dir

    folder = Path(tempfile.mkdtemp(prefix="hearth-real-", dir="/tmp"))
    folder.chmod(0o711)
    yield folder
    shutil.rmtree(runtime_dir(folder), ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def agent(monkeypatch: pytest.MonkeyPatch, db: None, state: Path) -> Iterator[LocalProvider]:
    """The agent of this machine, on a state folder of its own, for the region `local`."""
    from provisioning import engine, fleet
    from provisioning.providers.base import ProviderError
    from provisioning.providers.local.paths import agent_socket
    from provisioning.providers.local.provider import LocalProvider
    from tests.services import wait

    words = ["--state", str(state), "--environments", str(ROOT / "var" / "test" / "environments")]
    process = subprocess.Popen(
        [sys.executable, "-m", "provisioning.providers.local.agent", *words],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT / 'platform'}:{ROOT}"},
    )
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
        engine.stopping.clear()
        monkeypatch.setitem(fleet.MAKERS, "local", lambda: provider)
        yield provider
    finally:
        process.terminate()
        process.wait(60)


@pytest.fixture
def organisation(alice: User, bob: User) -> Organisation:
    """Alice's organisation, with Bob as a plain member."""
    from tenants.models import Membership, Organisation, Plan, Subscription

    plan = Plan.objects.create(
        code="t", name="Test", servers=9, users=900, vcpu=99, memory_mb=99000, disk_gb=999, object_gb=9999
    )
    organisation = Organisation.objects.create(name="Alice & Co", slug="alice-co")
    Subscription.objects.create(organisation=organisation, plan=plan)
    Membership.objects.create(organisation=organisation, user=alice, role="owner")
    Membership.objects.create(organisation=organisation, user=bob, role="member")
    return organisation


@pytest.fixture
def make_server(organisation: Organisation) -> Callable[..., Server]:
    """Return a function that makes a wanted server without telling anybody, as if every message were lost."""
    from tenants.models import Server

    def make(name: str = "", **columns: object) -> Server:
        name = name or f"s{uuid.uuid4().hex[:8]}"
        fields: dict[str, object] = {
            "organisation": organisation,
            "name": name,
            "server_name": f"{name}.hearth.localhost",
            "region": "local",
            "version": "1.150.0",
            "users": 100,
        }
        return Server.objects.create(**(fields | columns))

    return make


@pytest.fixture
def server(make_server: Callable[..., Server]) -> Server:
    """One wanted server."""
    return make_server("berry")
