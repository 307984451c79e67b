"""The three scripts that run in a server's pods."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from provisioning.chart.files import cache
from provisioning.chart.schema import FOLDER
from tests.bench.floor import free_ports
from tests.chart import values
from tests.chart.processes import Fleet, environment, wait_until
from tests.chart.render import render
from tests.prepare import VERSIONS

WORKERS = {"workers": {"eventPersisters": 1}, "redis": {"own": {"persistence": False}}}


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    """A server of two processes with its database, not yet started."""
    with Fleet(render(values.monolith(**WORKERS)), os.environ["DATABASE_URL"]) as fleet:
        yield fleet


def test_a_worker_waits_until_the_main_process_has_made_the_schema(fleet: Fleet) -> None:
    pods = ("synapse-main-0", "synapse-event-persister-0")
    fleet.prepare(*pods)
    fleet.start(pods[1])
    fleet.wait_log(pods[1], "Waiting: no schema yet")
    fleet.start(pods[0])
    fleet.ready(*pods)


def test_a_process_that_is_told_to_stop_before_synapse_runs_stops_at_once(fleet: Fleet) -> None:
    """By a handler of its own: the first process of a container has no other way to end by SIGTERM."""
    pod = "synapse-event-persister-0"
    fleet.prepare(pod)
    fleet.start(pod)
    fleet.wait_log(pod, "Waiting: no schema yet")
    fleet.processes[pod].send_signal(signal.SIGTERM)
    assert fleet.processes[pod].wait(20) == 143


def test_a_worker_waits_for_the_schema_of_its_own_release(fleet: Fleet) -> None:
    main, worker = "synapse-main-0", "synapse-event-persister-0"
    fleet.prepare(main, worker)
    fleet.start(main)
    fleet.ready(main)
    with fleet.connection() as connection:
        (schema,) = connection.execute("SELECT version FROM schema_version").fetchone() or (0,)
        connection.execute("UPDATE schema_version SET version = %s", (schema - 1,))
        connection.commit()
        fleet.start(worker)
        fleet.wait_log(worker, f"Waiting: the database has schema {schema - 1}")
        connection.execute("UPDATE schema_version SET version = %s", (schema,))
        connection.commit()
    fleet.ready(worker)


def test_an_upgrade_one_process_after_the_other_and_the_way_back(fleet: Fleet) -> None:
    """As a rolling update does it: old workers go on while the main process is new already."""
    main, worker = "synapse-main-0", "synapse-event-persister-0"
    newer, older = VERSIONS
    fleet.prepare(main, worker)
    for version in (older, newer, older):
        fleet.python = environment(version)
        for pod in (main, worker):
            if pod in fleet.processes:
                fleet.stop(pod)
            fleet.start(pod)
            # The worker is still the former release's when the main process comes back.
            fleet.ready(*[each for each in (main, worker) if each in fleet.processes])
        with fleet.client(main) as client:
            assert client.get("/_matrix/federation/v1/version").json()["server"]["version"].startswith(version)
            assert client.get("/_matrix/key/v2/server").json()["verify_keys"].keys() == {fleet.key_id}


def test_without_its_signing_key_or_with_another_one_it_does_not_start(fleet: Fleet) -> None:
    """Synapse alone would make a new key, and be another server to all others."""
    fleet.prepare("synapse-main-0")
    fleet.start("synapse-main-0", key_id="ed25519:a_Other")
    assert fleet.processes["synapse-main-0"].wait(60) == 3
    assert "this would be another server" in fleet.log("synapse-main-0")
    key = fleet.folder / "secrets" / "signing.key"
    key.unlink()
    fleet.start("synapse-main-0")
    assert fleet.processes["synapse-main-0"].wait(60) == 3
    assert "does not start without it" in fleet.log("synapse-main-0")
    assert not key.exists()


def test_the_password_reaches_the_database_and_no_file_or_log(fleet: Fleet) -> None:
    pod = "synapse-main-0"
    fleet.prepare(pod)
    fleet.start(pod)
    fleet.ready(pod)
    environment = Path(f"/proc/{fleet.processes[pod].pid}/environ").read_bytes()
    password = fleet.secret["password"]
    assert password.encode() not in environment  # that is what `env` of the container shows
    written = [path.read_text(errors="replace") for path in (fleet.folder / pod).rglob("*") if path.is_file()]
    assert password not in fleet.log(pod) + "".join(written)


@pytest.fixture
def front(tmp_path: Path) -> Iterator[str]:
    """The address of a front that runs."""
    content = {
        "server": {"m.server": "matrix.a:443"},
        "client": {"m.homeserver": {"base_url": "x"}},
        "suspended": "Pay.",
    }
    file = tmp_path / "front.json"
    file.write_text(json.dumps(content))
    port = free_ports(1)[0]
    process = subprocess.Popen([sys.executable, str(FOLDER / "files" / "front.py"), str(port), str(file)])
    try:
        wait_until(lambda: answers(port), 20)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        assert process.wait(60) == 0


def answers(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/health").status_code == 200
    except httpx.TransportError:
        return False


def test_the_front_answers_for_the_name_and_says_why_the_server_is_away(front: str) -> None:
    server = httpx.get(f"{front}/.well-known/matrix/server")
    assert (server.json(), server.headers["access-control-allow-origin"]) == ({"m.server": "matrix.a:443"}, "*")
    assert httpx.get(f"{front}/.well-known/matrix/client?x=1").json() == {"m.homeserver": {"base_url": "x"}}
    assert httpx.get(f"{front}/.well-known/matrix/support").status_code == 404
    sent = httpx.put(f"{front}/_matrix/client/v3/rooms/x/send/m/1", content=b"x" * 1_000_000)
    assert (sent.status_code, sent.json()["error"]) == (403, "Pay.")
    assert httpx.options(f"{front}/_matrix/client/v3/sync").status_code == 200
    assert httpx.head(f"{front}/.well-known/matrix/server").content == b""


def test_the_cache_loses_what_was_read_longest_ago(tmp_path: Path) -> None:
    now = time.time()
    for number in range(10):
        path = tmp_path / f"{number}" / "file"
        path.parent.mkdir()
        path.write_bytes(b"x" * 100)
        os.utime(path, (now - 10_000 + number, now - 10_000 + number))
    assert cache.trim(tmp_path, 2000, now) == 0
    assert cache.trim(tmp_path, 1000, now) == 500
    assert sorted(path.parent.name for path in tmp_path.rglob("file")) == ["5", "6", "7", "8", "9"]
    for path in tmp_path.rglob("file"):
        os.utime(path, (now, now))
    assert cache.trim(tmp_path, 100, now) == 0
