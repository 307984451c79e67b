"""A real agent on a state folder of its own, and one real homeserver that the tests of a run share."""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from provisioning.providers.base import Observation, ProviderError, ServerSpec
from provisioning.providers.local import environments
from provisioning.providers.local.keys import new_secrets
from provisioning.providers.local.paths import agent_socket, runtime_dir
from provisioning.providers.local.provider import LocalProvider
from tenants.releases import newest

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENTS = ROOT / "var" / "test" / "environments"
PATHS = {"PYTHONPATH": f"{ROOT / 'platform'}:{ROOT}"}
"""What the agent needs in its environment, as the supervisor gives it."""
fences = itertools.count(1)


def quiet(_: str) -> None:
    """Take a line of progress and forget it."""


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    """Wait until `condition()` holds, or fail."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


class Agent:
    """The agent's process on `state`, and a provider that talks to it."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self.provider = LocalProvider(agent_socket(state))
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it answers."""
        words = ["--state", str(self.state), "--environments", str(ENVIRONMENTS)]
        with (self.state / "agent.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "provisioning.providers.local.agent", *words],
                cwd=ROOT,
                env={**os.environ, **PATHS},
                stderr=log,
            )
        wait_for(self.answers)

    def answers(self) -> bool:
        """Tell whether it takes requests."""
        try:
            self.provider.observe()
        except ProviderError:
            return False
        return True

    def end(self, number: int) -> int:
        """Send a signal, wait, and return the exit code."""
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(60)

    def family(self) -> list[psutil.Process]:
        """Return all processes below it."""
        assert self.process is not None
        return psutil.Process(self.process.pid).children(recursive=True)


class Homeserver:
    """One server of the agent, with its spec."""

    def __init__(self, agent: Agent, name: str) -> None:
        self.agent = agent
        self.spec = ServerSpec(
            server_id=str(uuid.uuid4()),
            server_name=f"{name}.hearth.localhost",
            version=newest().version,
            vcpu=2,
            memory_mb=4096,
            disk_gb=20,
            object_gb=100,
            users=10,
            federation=True,
            secrets=new_secrets(),
        )

    @property
    def folder(self) -> Path:
        return self.agent.state / "servers" / self.spec.server_id

    def make(self) -> None:
        """Everything but the start."""
        self.agent.provider.ensure_storage(self.spec, fence=next(fences), progress=quiet)
        self.configure()

    def configure(self, **changes: object) -> None:
        self.agent.provider.configure(replace(self.spec, **changes), fence=next(fences), progress=quiet)  # type: ignore[arg-type]

    def start(self) -> str:
        return self.agent.provider.start(self.spec, fence=next(fences), progress=quiet)

    def stop(self) -> None:
        self.agent.provider.stop(self.spec.server_id, fence=next(fences), progress=quiet)

    def remove(self) -> None:
        self.agent.provider.remove(self.spec.server_id, fence=next(fences), progress=quiet)

    def seen(self) -> Observation:
        return self.agent.provider.observe()[self.spec.server_id]

    def wait_until_runs(self) -> Observation:
        wait_for(lambda: self.seen().running)
        return self.seen()


@pytest.fixture(scope="package")
def agent() -> Iterator[Agent]:
    asyncio.run(
        environments.ensure(ENVIRONMENTS, newest().version, progress=quiet, cache=ENVIRONMENTS.with_name("cache"))
    )
    state = Path(tempfile.mkdtemp(prefix="hearth-local-", dir="/tmp"))
    state.chmod(0o711)
    agent = Agent(state)
    try:
        agent.start()
        yield agent
    finally:
        if agent.process is not None and agent.process.poll() is None:
            agent.end(signal.SIGTERM)
        shutil.rmtree(runtime_dir(state), ignore_errors=True)
        shutil.rmtree(state)


@pytest.fixture(scope="package")
def _made(agent: Agent) -> Homeserver:
    server = Homeserver(agent, "alice")
    server.make()
    server.start()
    return server


@pytest.fixture
def server(_made: Homeserver) -> Homeserver:
    """The shared server, running."""
    _made.wait_until_runs()
    return _made
