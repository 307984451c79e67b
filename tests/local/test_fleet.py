"""What the agent does by itself: about what hangs, what was taken away under it, and what was moved elsewhere."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from provisioning.providers.base import ServerSpec
from provisioning.providers.local import paths, postgres
from provisioning.providers.local.agent import fleet as fleets
from provisioning.providers.local.agent import rpc, watch
from provisioning.providers.local.agent.__main__ import clear
from provisioning.providers.local.agent.fleet import Fleet
from provisioning.providers.local.agent.machine import Machine
from provisioning.providers.local.agent.server import ManagedServer
from provisioning.providers.local.keys import new_secrets
from provisioning.providers.local.paths import agent_socket, runtime_dir
from provisioning.providers.local.provider import LocalProvider
from tenants.releases import newest
from tests.local.conftest import ENVIRONMENTS, quiet

pytestmark = pytest.mark.xdist_group("fleet")  # they share one folder


@pytest.fixture(scope="module")
def made() -> Iterator[Path]:
    """A state folder with one server that was made and stopped."""
    top = Path(tempfile.mkdtemp(prefix="hearth-fleet-", dir="/tmp"))
    top.chmod(0o711)
    spec = ServerSpec(
        server_id=str(uuid.uuid4()),
        server_name="carol.hearth.localhost",
        version=newest().version,
        vcpu=2,
        memory_mb=4096,
        disk_gb=20,
        object_gb=100,
        users=10,
        secrets=new_secrets(),
    )

    async def make() -> None:
        async with _fleet(top / "state") as fleet:
            await fleet.prepare(spec.version, quiet)
            await fleet.ensure_storage(spec, 1, quiet)
            await fleet.configure(spec, 1, quiet)
            await fleet.start(spec, 1, quiet)

    asyncio.run(make())
    yield top
    shutil.rmtree(top)


@asynccontextmanager
async def _fleet(state: Path) -> AsyncIterator[Fleet]:
    machine = Machine.survey(state, ENVIRONMENTS)
    fleet = Fleet(machine)
    await fleet.boot()
    try:
        yield fleet
    finally:
        await fleet.shut_down()
        clear(machine.runtime, fleet)


@asynccontextmanager
async def _running(state: Path) -> AsyncIterator[ManagedServer]:
    async with _fleet(state) as fleet:
        (server,) = fleet.servers.values()
        await _until(lambda: server.state()[0])
        yield server


async def _until(condition: Callable[[], object], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        await asyncio.sleep(0.02)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("CALM", 0.1), ("DOUBT", 0.1), ("ANSWER_WITHIN", 1.0), ("PATIENCE", 2.0)):
        monkeypatch.setattr(watch, name, seconds)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(("part", "reason"), [("synapse", "NotAnswering"), ("postgres", "DatabaseDown")])
def test_a_process_that_hangs_is_noticed_and_started_again(part: str, reason: str, made: Path) -> None:
    async def hang() -> None:
        async with _running(made / "state") as server:
            pid = getattr(server, part).pid
            os.kill(pid, signal.SIGSTOP)
            await _until(lambda: not server.state()[0])
            running, found, message = server.state()
            assert (running, found) == (False, reason)
            assert "runs but" in message
            assert "Its data is safe" in message
            await _until(lambda: server.state()[0])
            assert getattr(server, part).pid != pid

    asyncio.run(hang())


@pytest.mark.usefixtures("impatient")
def test_an_emptied_tmp_heals(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rpc, "SOCKET_LOOK", 0.1)

    async def empty() -> None:
        state = made / "state"
        async with _running(state) as server:
            crashes = server.unit.crashes
            requests = rpc.Socket(Fleet(server.machine))
            await requests.open(state)
            keeper = asyncio.create_task(requests.keep(state))
            shutil.rmtree(runtime_dir(state))
            await _until(agent_socket(state).exists)
            assert await asyncio.to_thread(LocalProvider(agent_socket(state)).observe) == {}
            await _until(postgres.socket_path(server.folder.sockets).exists)
            await _until(lambda: server.state()[0])
            assert server.unit.crashes == crashes
            keeper.cancel()
            await requests.close()

    asyncio.run(empty())


def test_a_folder_that_was_copied_elsewhere_runs_there_with_its_own_key_and_data(made: Path) -> None:
    """As after a restore from a copy, whose files belong to whoever wrote it."""
    state = made / "elsewhere" / "deeper"
    state.parent.mkdir(mode=0o711)
    shutil.copytree(made / "state", state, symlinks=True)
    for name in ("media", "work", "postgres"):
        for path in (state / "servers").glob(f"*/{name}/**/*"):
            os.chown(path, os.geteuid(), os.getegid(), follow_symlinks=False)

    async def move() -> None:
        async with _running(state) as server:
            text = server.folder.config.read_text()
            assert str(made / "state") not in text
            assert str(made / "state") not in server.folder.places.log_config.read_text()
            assert runtime_dir(made / "state").name not in text
            for option in (server.folder.places.signing_key, server.folder.places.media, server.folder.sockets):
                assert str(option) in text
            assert psutil.Process(server.synapse.pid).uids().real == (server.unit.uid or os.geteuid())

    asyncio.run(move())


def test_hundreds_of_servers_start_a_few_at_a_time(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The servers are counters: what is shown is when the agent lets the next one start."""
    at_once: list[int] = []
    starting: set[int] = set()

    class Counter:
        def __init__(self, number: int) -> None:
            self.number, self.lock = number, asyncio.Lock()
            self.unit = SimpleNamespace(wanted=True)

        async def bring_up(self, _: object) -> None:
            starting.add(self.number)
            at_once.append(len(starting))

        async def settled(self, _: float) -> None:
            await asyncio.sleep(0.01)  # until it answers
            starting.discard(self.number)

    async def start() -> None:
        fleet = Fleet(Machine.survey(made / "state", ENVIRONMENTS))
        await asyncio.gather(*(fleet._revive(Counter(number)) for number in range(200)))  # type: ignore[arg-type]

    asyncio.run(start())
    shutil.rmtree(runtime_dir(made / "state"))
    assert len(at_once) == 200
    assert max(at_once) == fleets.STARTS_AT_ONCE


def test_a_socket_of_somebody_else_gets_no_secrets(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Anybody may make a folder under /tmp that bears our name before we do."""

    async def listen() -> None:
        got: list[bytes] = []
        path = made / "fake.sock"

        async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            got.append(await reader.read())
            writer.close()

        async with await asyncio.start_unix_server(take, path):
            monkeypatch.setattr(os, "geteuid", lambda: 4242)
            monkeypatch.setattr("provisioning.providers.local.provider._peer", lambda _: 4243)
            with pytest.raises(Exception, match="does not answer"):
                await asyncio.to_thread(LocalProvider(path).observe)
            await _until(lambda: got)
            assert got == [b""]

    asyncio.run(listen())


def test_asking_for_the_socket_makes_no_folder(tmp_path: Path) -> None:
    assert not agent_socket(tmp_path).parent.exists()
    assert agent_socket(tmp_path) == paths.runtime_dir(tmp_path) / "agent.sock"
    runtime_dir(tmp_path).rmdir()
