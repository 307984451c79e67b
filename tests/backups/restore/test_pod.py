"""What brings a server of a cluster back, in its pod: killed in the middle, it goes on; then its database is copied."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import msgspec
import psutil
import psycopg
import pytest

from backups.engine.recovering import pod as pods
from backups.engine.recovering.pod import Places, Pod
from backups.engine.recovering.told import Told
from backups.engine.restore.request import load
from provisioning.providers.local.postgres import BIN
from tests.backups.clusters import Cluster
from tests.backups.engine.conftest import wait_for
from tests.backups.restore.conftest import ROOT, Server
from tests.backups.restore.ports import steady

PASSWORD = "a-word-of-its-own"


NOON = "2026-11-23T12:00:00+00:00"
HOST = "127.0.0.1"


@dataclass(frozen=True)
class Ports:
    """Where a pod answers, and its database."""

    status: int
    postgres: int

    def status_now(self) -> dict[str, Any]:
        """What it answers; nothing while it does not."""
        try:
            return dict(httpx.get(f"http://{HOST}:{self.status}/status", timeout=10).json())
        except httpx.TransportError:
            return {}

    def wait(self, **wanted: Any) -> dict[str, Any]:
        """Wait until it answers this."""

        def reached() -> dict[str, Any] | None:
            found = self.status_now()
            return found if wanted.items() <= found.items() else None

        return dict(wait_for(reached, 180))


@pytest.fixture
def ports() -> Ports:
    return Ports(*steady(2))


def written(server: Server, **changes: Any) -> Path:
    """The pod's folder."""
    folder = server.folder / "secret"
    folder.mkdir(exist_ok=True)
    (folder / "request.json").write_bytes(msgspec.json.encode(server.request(configuration="", **changes)))
    (folder / "password").write_text(PASSWORD)
    return folder


def begun(server: Server, folder: Path, ports: Ports) -> subprocess.Popen[bytes]:
    words = [sys.executable, "-m", "tests.backups.restore.pod_runner", str(folder), str(server.keys.path)]
    paths = {"PYTHONPATH": f"{ROOT / 'platform'}:{ROOT}", "PATH": "/usr/bin:/bin:/usr/sbin:/sbin"}
    words += [str(ports.status), str(ports.postgres)]
    return subprocess.Popen(words, cwd=ROOT, env=paths, stdout=subprocess.DEVNULL)


def killed(process: subprocess.Popen[bytes]) -> None:
    """End a container: all of its processes at once."""
    children = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    for each in children:
        with contextlib.suppress(psutil.NoSuchProcess):
            each.kill()
    psutil.wait_procs(children, timeout=60)


@contextmanager
def ended(processes: list[subprocess.Popen[bytes]]) -> Iterator[None]:
    try:
        yield
    finally:
        for each in processes:
            if each.poll() is None:
                killed(each)


def copy(server: Server, ports: Ports, place: Path, password: str = PASSWORD) -> None:
    """Take a copy as the Cluster's first instance does."""
    words = [str(BIN / "pg_basebackup"), "-D", str(place), "-h", HOST, "-p", str(ports.postgres), "-U", "hearth_backup"]
    words += ["-X", "stream", "-c", "fast"]
    subprocess.run(words, env={"PGPASSWORD": password}, check=True, capture_output=True, timeout=120)


def copied(server: Server, ports: Ports) -> Cluster:
    """A server on such a copy."""
    cluster = Cluster(server.folder / "copy")
    copy(server, ports, cluster.data)
    for path in (cluster.data, *cluster.data.rglob("*")):
        cluster.own(path)
    server.living.append(cluster)
    cluster.start()
    return cluster


def test_it_goes_on_where_it_was_killed_and_gives_its_database_away_whole(server: Server, ports: Ports) -> None:
    server.cluster.value("CREATE TABLE message (id int PRIMARY KEY)")
    server.files.add(b"picture" * 1000)
    server.start()
    server.point()
    server.cluster.value("INSERT INTO message SELECT generate_series(1, 1000)")
    server.covered()
    server.stop()
    folder = written(server)
    processes = [begun(server, folder, ports)]
    with ended(processes):
        wait_for(lambda: ports.status_now().get("step", "begin") != "begin", 180)
        killed(processes[-1])
        processes.append(begun(server, folder, ports))
        found = ports.wait(state="serving")
        assert (found["revision"], found["step"], found["result"]["media_files"]) == ("v1", "copy", 1)
        killed(processes[-1])  # while it serves: what is there serves again
        processes.append(begun(server, folder, ports))
        ports.wait(state="serving")
        assert copied(server, ports).value("SELECT count(*) FROM message") == 1000
        for user in ("postgres", "hearth_backup"):
            with pytest.raises(psycopg.OperationalError, match=r"pg_hba\.conf rejects"):
                psycopg.connect(host=HOST, port=ports.postgres, user=user, password=PASSWORD, dbname="postgres")
        with pytest.raises(subprocess.CalledProcessError):
            copy(server, ports, server.folder / "no", "another word")


@contextmanager
def here(ports: Ports, folder: Path, *, settles: bool = False, ask: Any = None) -> Iterator[threading.Thread]:
    """The program in a thread of this process. `ask`: what opens data keys."""
    places = Places(
        folder, host=HOST, port=ports.status, postgres=ports.postgres, cluster=HOST, password=folder / "word"
    )
    stop = threading.Event()
    thread = threading.Thread(target=Pod(places, Told("v2"), stop, settles=settles, ask=ask).run)
    thread.start()
    try:
        yield thread
    finally:
        stop.set()
        thread.join(60)


def test_what_can_not_be_done_stays_told(ports: Ports, tmp_path: Path) -> None:
    (tmp_path / "request.json").write_text("{}")
    with here(ports, tmp_path):
        found = ports.wait(state="failed")
        assert (found["code"], found["retry"], found["revision"]) == ("BadRequest", False, "v2")
        assert httpx.get(f"http://{HOST}:{ports.status}/readyz", timeout=10).status_code == 200


def test_what_is_not_there_yet_is_waited_for(ports: Ports, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pods, "PAUSE", 0.1)
    monkeypatch.setattr(pods, "LONGEST_PAUSE", 0.2)
    request = {"organisation": "o", "server": "s", "store": {"type": "folder", "path": "x"}, "data": "d", "work": "w"}
    (tmp_path / "request.json").write_bytes(msgspec.json.encode(request))
    with here(ports, tmp_path, settles=True):
        ports.wait(state="running", step="settle", code="DiskFault")
        (tmp_path / "word").write_text("a word")
        ports.wait(state="running", step="settle", code="SettleFailed")  # nobody listens there


@pytest.mark.parametrize(
    ("more", "found"),
    [({}, None), ({"to": NOON}, NOON), ({"settle": {"moment": NOON}}, NOON), ({"to": NOON, "settle": None}, NOON)],
)
def test_a_settling_knows_of_when_the_data_are(tmp_path: Path, more: dict[str, Any], found: str | None) -> None:
    request = {"organisation": "o", "server": "s", "store": {"type": "folder", "path": "x"}, "data": "d", "work": "w"}
    (tmp_path / "request.json").write_bytes(msgspec.json.encode(request | more))
    moment = pods.moment_of(load(tmp_path / "request.json"))
    assert moment == (None if found is None else datetime.fromisoformat(found))
