"""The agent's certificate through its socket: a real agent, a real server, a real user id of its own."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from pathlib import Path

import pytest

from provisioning.providers.base import ProviderError, StaleFence
from provisioning.providers.local.agent.__main__ import clear
from provisioning.providers.local.agent.fleet import Fleet
from provisioning.providers.local.agent.machine import Machine
from security.transport.identities import Identity
from tests.local.authority import Authority
from tests.local.conftest import ENVIRONMENTS, Homeserver, fences

pytestmark = pytest.mark.xdist_group("agent")  # they share one server
ADDRESS = "https://127.0.0.1:18000"


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


def request(server: Homeserver) -> bytes:
    return server.agent.provider.certificate_request(server.spec.server_id, fence=next(fences))


def install(server: Homeserver, authority: Authority, asked: bytes, address: str = ADDRESS) -> None:
    chain = authority.issue(asked, Identity("agent", server.spec.server_id))
    server.agent.provider.install_certificate(
        server.spec.server_id, chain=chain, trust=authority.trust, address=address, fence=next(fences)
    )


def files(server: Homeserver) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (server.folder / "identity").iterdir()}


def test_it_works(server: Homeserver, authority: Authority) -> None:
    asked = request(server)
    assert b"BEGIN CERTIFICATE REQUEST" in asked
    install(server, authority, asked)
    seen = server.seen()
    assert (seen.certificate_wanted, seen.internal_address) == ("", ADDRESS)
    assert set(files(server)) == {"agent.pem", "trust.pem", "address"}
    install(server, authority, request(server), "https://127.0.0.1:18001")
    assert server.seen().internal_address == "https://127.0.0.1:18001"


def test_the_servers_own_user_reads_nothing_of_it(server: Homeserver, authority: Authority) -> None:
    """A homeserver that was broken into must not speak to Hearth in its agent's name."""
    if os.geteuid() != 0:
        assert "could read Hearth's files" in server.seen().isolation, "one user for all, and people are told"
        return
    install(server, authority, request(server))
    request(server)  # so that the next key is there too
    user, group = server.seen().details["uid"], server.folder.stat().st_gid
    assert user != 0

    def try_to(*words: str) -> int:
        dropped = ["setpriv", f"--reuid={user}", f"--regid={group}", "--clear-groups", "--", *words]
        return subprocess.run(dropped, capture_output=True, check=False).returncode

    readable = next((server.folder / "config").glob("homeserver.yaml"))
    assert try_to("cat", str(readable)) == 0, "this user does reach the folder"
    secret = [server.folder / "identity" / name for name in files(server)]
    assert len(secret) == 4
    for path in secret:
        assert try_to("cat", str(path)) != 0
        assert try_to("rm", "-f", str(path)) != 0
    assert try_to("ls", str(server.folder / "identity")) != 0
    assert try_to("mv", str(server.folder / "identity"), str(server.folder / "media" / "mine")) != 0


def test_killed_between_key_and_certificate(server: Homeserver, authority: Authority) -> None:
    asked = request(server)
    server.agent.end(signal.SIGKILL)
    server.agent.start()
    install(server, authority, asked)
    assert server.seen().certificate_wanted == ""
    server.agent.end(signal.SIGKILL)
    server.agent.start()
    assert server.seen().certificate_wanted == "", "it is there after a start too"


def test_a_certificate_waits_for_nothing_that_the_server_does(server: Homeserver, tmp_path: Path) -> None:
    """A start holds the server for as long as it takes, and a whole region is looked at meanwhile."""

    async def certify() -> bytes:
        machine = Machine.survey(tmp_path, ENVIRONMENTS)
        fleet = Fleet(machine)
        fleet.found(server.spec, fence=1)
        try:
            async with fleet.servers[server.spec.server_id].lock:
                return (await asyncio.wait_for(fleet.certificate_request(server.spec.server_id, 1), 20)).encode()
        finally:
            await fleet.servers[server.spec.server_id].folder.remove()
            clear(machine.runtime, fleet)

    assert b"BEGIN CERTIFICATE REQUEST" in asyncio.run(certify())


def test_an_older_worker_is_refused(server: Homeserver, authority: Authority) -> None:
    provider, before = server.agent.provider, files(server)
    with pytest.raises(StaleFence, match="newer worker"):
        provider.certificate_request(server.spec.server_id, fence=0)
    with pytest.raises(StaleFence, match="newer worker"):
        provider.install_certificate(server.spec.server_id, chain="", trust="", address="", fence=0)
    assert files(server) == before


def test_the_certificate_of_another_server_is_refused(server: Homeserver, authority: Authority) -> None:
    asked, before = request(server), server.seen()
    chain = authority.issue(asked, Identity("agent", "6f0b2a1e-7a51-4a55-9b0b-0a2e0b6b6f11"))
    with pytest.raises(ProviderError, match="is kept") as refusal:
        server.agent.provider.install_certificate(
            server.spec.server_id, chain=chain, trust=authority.trust, address=ADDRESS, fence=next(fences)
        )
    assert refusal.value.code == "CertificateUnfit"
    assert server.seen().certificate_wanted == before.certificate_wanted


@pytest.mark.parametrize("server_id", ["6f0b2a1e-7a51-4a55-9b0b-0a2e0b6b6f11", "../../etc", ""])
def test_who_is_not_here_has_no_identity(server_id: str, server: Homeserver) -> None:
    with pytest.raises(ProviderError, match=r"no such server|not a server's id"):
        server.agent.provider.certificate_request(server_id, fence=next(fences))
    assert not list(server.agent.state.glob("servers/identity"))


def test_a_removed_server_takes_its_identity_along(server: Homeserver, authority: Authority) -> None:
    other = Homeserver(server.agent, "gone")
    other.agent.provider.ensure_storage(other.spec, fence=next(fences), progress=lambda _: None)
    install(other, authority, request(other))
    other.remove()
    assert not other.folder.exists()
    with pytest.raises(ProviderError) as refusal:
        request(other)
    assert refusal.value.code == "NoSuchServer"
    assert not list(other.folder.parent.glob(f"*{other.spec.server_id}*"))
