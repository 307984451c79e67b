"""A state folder that other users can't reach: isolated all the same, or said with its remedy."""

from __future__ import annotations

import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from provisioning.providers.local.agent.machine import FIRST_UID
from provisioning.providers.local.paths import runtime_dir
from tests.local.conftest import Agent, Homeserver

MAY = subprocess.run(["unshare", "--mount", "true"], check=False, capture_output=True).returncode == 0


@pytest.fixture
def agent() -> Iterator[Agent]:
    top = Path(tempfile.mkdtemp(prefix="hearth-closed-", dir="/tmp"))  # 0700, as /root is
    (top / "state").mkdir()
    agent = Agent(top / "state")
    try:
        agent.start()
        yield agent
    finally:
        if agent.process is not None and agent.process.poll() is None:
            agent.end(signal.SIGTERM)
        shutil.rmtree(runtime_dir(agent.state), ignore_errors=True)
        shutil.rmtree(top)


def test_a_server_below_a_closed_folder_is_isolated_or_the_remedy_is_told(agent: Agent) -> None:
    before = Path("/proc/self/mounts").read_text()
    server = Homeserver(agent, "closed")
    server.make()
    url = server.start()
    assert httpx.get(f"{url}/_matrix/client/versions", trust_env=False).status_code == 200
    seen = server.wait_until_runs()
    assert seen.isolation == agent.provider.weakness()
    if MAY:
        assert seen.isolation == ""
        assert seen.details["uid"] >= FIRST_UID
        for process in agent.family():
            status = Path(f"/proc/{process.pid}/status").read_text()
            assert process.uids().real == seen.details["uid"]
            assert [line.split()[1] for line in status.splitlines() if line.startswith(("CapEff", "CapAmb"))] == [
                "0" * 16
            ] * 2
    elif "HEARTH_STATE" not in seen.isolation:
        assert "not started as root" in seen.isolation
    assert Path("/proc/self/mounts").read_text() == before
    assert (server.folder / "postgres" / "PG_VERSION").exists()
    # What runs out of memory first is a homeserver, and never Hearth.
    scores = {name: _score(seen.details[f"{name}_pid"]) for name in ("synapse", "postgres")}
    own = _score(psutil.Process().pid)
    assert scores["synapse"] > scores["postgres"] > own
    server.remove()
    assert not server.folder.exists()


def _score(pid: int) -> int:
    return int(Path(f"/proc/{pid}/oom_score_adj").read_text())
