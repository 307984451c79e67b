"""Renewal in time: before Hearth answers, while it is away, when it refuses, when the server is removed meanwhile.

Hearth's answers are scripted here to inject faults; the real listener answers in tests/provisioning/test_identities.py.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from provisioning.providers.local.agent import renewal
from provisioning.providers.local.agent.credentials import Credentials
from provisioning.providers.local.agent.renewal import Renewals
from provisioning.providers.local.agent.server import ManagedServer
from security.transport.errors import CallRefused, NotTrusted, TransportError, Unreachable
from tests.local.authority import WEEK, Authority

ADDRESS = "https://127.0.0.1:18000"


class Hearth:
    """Signs for whoever asks, unless `faults` holds what goes wrong next."""

    def __init__(self) -> None:
        self.authority = Authority()
        self.faults: list[Exception] = []
        self.asked = 0
        self.meanwhile: Callable[[], None] = lambda: None

    def __call__(self, credentials: Credentials, request: bytes) -> tuple[str, str]:
        self.asked += 1
        self.meanwhile()
        if self.faults:
            raise self.faults.pop(0)
        return self.authority.issue(request, credentials.identity), self.authority.trust


@pytest.fixture(scope="module")
def signer() -> Authority:
    return Authority()


@pytest.fixture
def hearth(signer: Authority) -> Hearth:
    hearth = Hearth()
    hearth.authority = signer
    return hearth


def make(folder: Path, hearth: Hearth, *, spent: float) -> ManagedServer:
    """Return a server of which only the credentials are real; that part of their life is over."""
    server_id = str(uuid.uuid4())
    mine = Credentials(folder / server_id, server_id)
    chain = hearth.authority.issue(mine.request(), mine.identity, age=WEEK * spent)
    mine.install(chain, hearth.authority.trust, ADDRESS)
    server = SimpleNamespace(
        unit=SimpleNamespace(server_id=server_id), folder=SimpleNamespace(credentials=mine), certifying=asyncio.Lock()
    )
    return cast("ManagedServer", server)


def fleet(*servers: ManagedServer) -> dict[str, ManagedServer]:
    return {server.unit.server_id: server for server in servers}


def key(server: ManagedServer) -> str:
    material = server.folder.credentials.material
    assert material is not None
    return material.key


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(2000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not happen in time")


def look(renewals: Renewals, times: int = 1) -> None:
    async def looks() -> None:
        for _ in range(times):
            await renewals.look()

    asyncio.run(looks())


def test_it_works(tmp_path: Path, hearth: Hearth) -> None:
    young, old = make(tmp_path, hearth, spent=0.5), make(tmp_path, hearth, spent=0.7)
    before = key(young), key(old)
    look(Renewals(fleet(young, old), hearth), times=3)
    assert hearth.asked == 1
    assert key(young) == before[0]
    assert key(old) != before[1]
    assert not old.folder.credentials.due()


def test_what_has_ended_or_never_was_is_not_asked_for(tmp_path: Path, hearth: Hearth) -> None:
    """Only Hearth can help, through the agent's socket; the agent would have nothing to prove itself with."""
    ended, none = make(tmp_path, hearth, spent=1.1), make(tmp_path, hearth, spent=0.1)
    none.folder.credentials.pair_file.unlink()
    renewals = Renewals(fleet(ended, none), hearth)
    look(renewals)
    assert hearth.asked == 0
    assert renewals.pause() == renewal.LOOK
    assert ended.folder.credentials.wanted() == "CertificateExpired"
    assert none.folder.credentials.wanted() == "CertificateMissing"


@pytest.mark.parametrize("away", [Unreachable("Nobody answers."), CallRefused(503, "busy", "Hearth failed.", "")])
def test_while_hearth_is_away_it_is_asked_less_and_less(away: Exception, tmp_path: Path, hearth: Hearth) -> None:
    servers = fleet(make(tmp_path, hearth, spent=0.7), make(tmp_path, hearth, spent=0.7))
    renewals = Renewals(servers, hearth)
    pauses = []
    hearth.faults = [away] * 12
    for _ in range(12):
        look(renewals)
        pauses.append(renewals.pause())
    assert hearth.asked == 12, "one question for all servers, not one for each"
    assert pauses[:4] == [5.0, 10.0, 20.0, 40.0]
    assert pauses[-1] == renewal.LONGEST_WAIT
    assert {server.folder.credentials.wanted() for server in servers.values()} == {""}
    look(renewals)
    assert hearth.asked == 14
    assert renewals.pause() <= renewal.LOOK


REFUSALS: list[Exception] = [
    NotTrusted("Whoever answers is not Hearth."),
    CallRefused(403, "not-allowed", "This identity may not do that.", ""),
    TransportError("The file can't be read."),
    OSError(28, "No space left on device"),
]


@pytest.mark.parametrize("refusal", REFUSALS)
def test_an_agent_that_is_refused_says_so_and_delays_nobody(refusal: Exception, tmp_path: Path, hearth: Hearth) -> None:
    refused, other = make(tmp_path, hearth, spent=0.7), make(tmp_path, hearth, spent=0.7)
    before = key(refused), key(other)
    hearth.faults = [refusal]
    renewals = Renewals(fleet(refused, other), hearth)
    look(renewals, times=3)
    assert hearth.asked == 2, "not asked again at once"
    assert refused.folder.credentials.wanted() == "CertificateRefused"
    assert (key(refused) == before[0], key(other) == before[1]) == (True, False)
    mine = refused.folder.credentials
    mine.install(hearth.authority.issue(mine.request(), mine.identity), hearth.authority.trust, ADDRESS)
    assert mine.wanted() == ""


def test_an_answer_for_somebody_else_is_not_taken(tmp_path: Path, hearth: Hearth) -> None:
    server, other = make(tmp_path, hearth, spent=0.7), make(tmp_path, hearth, spent=0.1)
    before = server.folder.credentials.pair_file.read_bytes()

    def answer(_: Credentials, request: bytes) -> tuple[str, str]:
        return hearth.authority.issue(request, other.folder.credentials.identity), hearth.authority.trust

    look(Renewals(fleet(server), answer))
    assert server.folder.credentials.pair_file.read_bytes() == before
    assert server.folder.credentials.wanted() == "CertificateRefused"


def test_a_server_removed_meanwhile_gets_nothing(tmp_path: Path, hearth: Hearth) -> None:
    server = make(tmp_path, hearth, spent=0.7)
    servers = fleet(server)
    hearth.meanwhile = servers.clear
    before = key(server)
    look(Renewals(servers, hearth))
    assert (hearth.asked, key(server)) == (1, before)


def test_one_that_came_through_the_socket_meanwhile_does_no_harm(tmp_path: Path, hearth: Hearth) -> None:
    server = make(tmp_path, hearth, spent=0.7)
    mine = server.folder.credentials

    def install() -> None:
        mine.install(hearth.authority.issue(mine.request(), mine.identity), hearth.authority.trust, ADDRESS)

    hearth.meanwhile = install
    look(Renewals(fleet(server), hearth))
    assert mine.wanted() == ""
    assert hearth.asked == 1


def test_a_fault_of_our_own_does_not_end_the_loop(
    tmp_path: Path, hearth: Hearth, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    monkeypatch.setattr(renewal, "SOONEST", 0.01)
    server = make(tmp_path, hearth, spent=0.7)
    before = key(server)
    hearth.faults = [ZeroDivisionError()]

    async def keep() -> None:
        task = asyncio.create_task(Renewals(fleet(server), hearth).keep())
        await until(lambda: key(server) != before)
        task.cancel()

    asyncio.run(keep())
    assert "ZeroDivisionError" in capfd.readouterr().err
