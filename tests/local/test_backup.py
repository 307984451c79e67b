"""What backs a server up runs beside it, is observed, and never concerns it."""

from __future__ import annotations

import base64
import json
import signal
import stat
import subprocess
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from provisioning.providers.base import ProviderError
from provisioning.providers.local.paths import runtime_dir
from provisioning.providers.local.postgres import BIN, environment
from tests.local.conftest import Homeserver, wait_for

pytestmark = pytest.mark.xdist_group("agent")  # its server is that of the other tests of a real one


def wanted(server: Homeserver) -> dict[str, Any]:
    """What Hearth asks for; it does not listen here, so there are no keys and WAL waits."""
    return {
        "module": "backups.engine",
        "settings": {
            "organisation": "alice-and-friends",
            "store": {"type": "folder", "path": str(server.agent.state / "store"), "make": True},
            "name_key_file": "name.key",
        },
        "files": {"name.key": base64.b64encode(bytes(32)).decode()},
    }


@pytest.fixture(scope="module")
def backed_up(_made: Homeserver) -> Iterator[Homeserver]:
    server = _made
    server.configure(backup=wanted(server))
    server.start()
    wait_for(lambda: seen(server).get("fault_code") == "HearthAway")
    yield server
    server.configure()
    server.start()
    wait_for(lambda: not query(server, "SELECT count(*) FROM pg_roles WHERE rolname = 'hearth_backup'"))


def seen(server: Homeserver) -> dict[str, Any]:
    found: dict[str, Any] = server.seen().details["backup"]
    return found


def ended(process: psutil.Process) -> bool:
    """Tell whether it runs no more, whoever is to reap it."""
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def query(server: Homeserver, text: str) -> int:
    """Ask the server's database as its superuser."""
    words = ["-X", "-A", "-t", "-h", environment_of(server)["host"], "-U", "postgres", "-d", "postgres", "-c", text]
    env = {**environment(), "PGPASSWORD": environment_of(server)["password"]}
    return int(subprocess.check_output([BIN / "psql", *words], env=env, text=True))


def environment_of(server: Homeserver) -> dict[str, str]:
    unit = json.loads((server.folder / "unit.json").read_text())
    sockets = runtime_dir(server.agent.state) / server.spec.server_id
    return {"host": str(sockets), "password": unit["superuser_password"]}


def test_it_runs_beside_the_server_and_keeps_its_wal(backed_up: Homeserver) -> None:
    assert backed_up.seen().running
    assert seen(backed_up)["process"] == "running"
    assert query(backed_up, "SELECT count(*) FROM pg_replication_slots WHERE active") == 1
    engine = psutil.Process(seen(backed_up)["pid"])
    receiver = next(each for each in engine.children() if each.name() == "pg_receivewal")
    database = psutil.Process(backed_up.seen().details["postgres_pid"])
    assert receiver.uids().real == database.uids().real
    assert engine.uids().real == psutil.Process(backed_up.agent.process.pid).uids().real  # type: ignore[union-attr]


def test_its_secrets_are_the_agents_own(backed_up: Homeserver) -> None:
    folder = backed_up.folder / "backup"
    for name in ("settings.json", "wanted.json", "password", "name.key"):
        assert stat.S_IMODE((folder / name).stat().st_mode) == 0o600
        assert (folder / name).stat().st_uid == folder.parent.stat().st_uid


def test_its_crash_does_not_concern_the_server(backed_up: Homeserver) -> None:
    before = backed_up.seen()
    receivers = psutil.Process(seen(backed_up)["pid"]).children()

    psutil.Process(seen(backed_up)["pid"]).send_signal(signal.SIGKILL)

    wait_for(lambda: seen(backed_up)["crashes"] == 1 and seen(backed_up)["process"] == "running")
    after = backed_up.seen()
    assert (after.running, after.crashes, after.started_at) == (True, before.crashes, before.started_at)
    wait_for(lambda: all(ended(each) for each in receivers))


def test_a_restart_of_the_agent_brings_it_back(backed_up: Homeserver) -> None:
    engine = psutil.Process(seen(backed_up)["pid"])
    backed_up.agent.end(signal.SIGTERM)
    assert ended(engine)
    backed_up.agent.start()
    backed_up.wait_until_runs()
    wait_for(lambda: seen(backed_up).get("process") == "running")


def test_stopped_with_the_server(backed_up: Homeserver) -> None:
    engine = psutil.Process(seen(backed_up)["pid"])
    backed_up.stop()
    assert ended(engine)
    assert not seen(backed_up)
    backed_up.start()
    wait_for(lambda: seen(backed_up).get("process") == "running")


def test_without_it_nothing_is_left(backed_up: Homeserver) -> None:
    server = backed_up
    wait_for(lambda: bool(query(server, "SELECT count(*) FROM pg_replication_slots")))
    server.configure()
    server.start()
    wait_for(lambda: not query(server, "SELECT count(*) FROM pg_replication_slots"))
    wait_for(lambda: not (server.folder / "backup").exists())
    assert not seen(server)
    assert server.seen().running
    server.configure(backup=wanted(server))
    server.start()


@pytest.mark.parametrize(
    "change",
    [
        {"module": "os; rm"},
        {"module": None},
        {"settings": "x"},
        {"files": {"../a": ""}},
        {"files": {"settings.json": ""}},
        {"files": {"a": "?"}},
    ],
)
def test_nonsense_is_refused(server: Homeserver, change: dict[str, Any]) -> None:
    with pytest.raises(ProviderError, match="can't be understood"):
        server.configure(backup=wanted(server) | change)
