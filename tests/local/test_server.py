"""A server by the local provider: made, asked, hurt, suspended, removed. Real Synapse, real PostgreSQL."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from provisioning.matrix import Homeserver as Client
from provisioning.matrix import MatrixError
from provisioning.providers.base import ProviderError, StaleFence
from provisioning.providers.local.keys import new_signing_key, verify_key
from tests.local.conftest import PATHS, Agent, Homeserver, fences, quiet, wait_for

pytestmark = pytest.mark.xdist_group("agent")  # they share one server


def get(url: str) -> httpx.Response:
    return httpx.get(url, trust_env=False, timeout=10)


def test_it_works(server: Homeserver) -> None:
    seen = server.wait_until_runs()
    assert get(f"{seen.homeserver_url}/_matrix/client/versions").status_code == 200
    assert seen.homeserver_url.startswith("http://localhost:")
    answer = get(f"{seen.homeserver_url}/_matrix/key/v2/server").json()
    key_id, public = verify_key(server.spec.secrets["signing_key"])
    assert answer["verify_keys"] == {key_id: {"key": public}}
    assert (seen.signing_key_id, seen.version) == (key_id, server.spec.version)
    assert "synapse_" in get(seen.metrics_url).text


def test_what_it_uses_is_seen(server: Homeserver) -> None:
    wait_for(lambda: (server.seen().disk_bytes or 0) > 0 and (server.seen().memory_bytes or 0) > 50_000_000)
    seen = server.seen()
    assert (seen.cpu_seconds or 0) > 0
    assert seen.started_at is not None


def test_figures_are_fresh_after_every_change(server: Homeserver) -> None:
    """Else a new server's first figures would be those of its first second, for a minute."""
    wait_for(lambda: (server.seen().disk_bytes or 0) > 0)
    blob = server.folder / "media" / "local_content" / "blob"
    blob.parent.mkdir(exist_ok=True)
    blob.write_bytes(os.urandom(5_000_000))
    server.configure()
    try:
        assert (server.seen().media_bytes or 0) >= 5_000_000
    finally:
        blob.unlink()
        server.configure()


def test_the_same_again_changes_nothing(server: Homeserver) -> None:
    before = server.seen()
    server.make()
    assert server.start() == before.homeserver_url
    assert server.seen().details == before.details


@pytest.mark.parametrize(("process", "reason"), [("synapse_pid", "SynapseCrashed"), ("postgres_pid", "DatabaseDown")])
def test_a_killed_process_is_noticed_and_started_again(process: str, reason: str, server: Homeserver) -> None:
    before = server.seen()
    os.kill(before.details[process], signal.SIGKILL)
    seen = []
    wait_for(lambda: seen.append(server.seen()) or seen[-1].crashes == before.crashes + 1)  # type: ignore[func-returns-value]
    assert (seen[-1].running, seen[-1].reason) == (False, reason)
    assert seen[-1].message
    after = server.wait_until_runs()
    assert after.details[process] != before.details[process]
    assert after.homeserver_url == before.homeserver_url


def test_an_older_worker_is_refused(server: Homeserver) -> None:
    before = server.seen()
    for verb in (server.agent.provider.stop, server.agent.provider.remove):
        with pytest.raises(StaleFence, match="newer worker"):
            verb(server.spec.server_id, fence=0, progress=quiet)
    with pytest.raises(StaleFence):
        server.agent.provider.configure(server.spec, fence=0, progress=quiet)
    assert server.seen().details == before.details


@pytest.mark.parametrize("damage", ["missing", "changed"])
def test_another_signing_key_is_never_used(damage: str, server: Homeserver) -> None:
    server.stop()
    key = server.folder / "config" / "signing.key"
    right = key.read_text()
    try:
        key.unlink() if damage == "missing" else key.write_text(new_signing_key() + "\n")
        left = key.read_text() if key.exists() else None
        with pytest.raises(ProviderError, match="Its data is safe") as refused:
            server.start()
        assert (refused.value.code, refused.value.retry) == ("SigningKeyMismatch", False)
        seen = server.seen()
        assert (seen.running, seen.reason, seen.details["synapse_pid"]) == (False, "SigningKeyMismatch", None)
        assert (key.read_text() if key.exists() else None) == left
    finally:
        key.write_text(right)
        key.chmod(0o640)
        os.chown(key, -1, server.folder.stat().st_gid)
    assert server.start() == seen.homeserver_url


def test_hearth_itself_cannot_give_another_signing_key(server: Homeserver) -> None:
    with pytest.raises(ProviderError, match="nothing was changed") as refused:
        server.configure(secrets=dict(server.spec.secrets) | {"signing_key": new_signing_key()})
    assert refused.value.code == "SigningKeyMismatch"


def test_a_taken_port_is_said_and_waited_for(server: Homeserver) -> None:
    port = int(server.seen().homeserver_url.rpartition(":")[2])
    server.stop()
    with socket.socket() as thief:
        thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        thief.bind(("127.0.0.1", port))
        thief.listen()
        with pytest.raises(ProviderError, match=f"Port {port} is taken") as refused:
            server.start()
        assert (refused.value.code, refused.value.retry) == ("PortTaken", True)
        assert server.seen().reason == "PortTaken"
    assert server.wait_until_runs().homeserver_url.endswith(f":{port}")


def test_a_suspended_server_tells_its_clients_and_lets_the_service_account_in(server: Homeserver) -> None:
    secrets = server.spec.secrets
    with Client(server.seen().homeserver_url, server.spec.server_name) as client:
        admin = client.register_admin("admin", "a long password", secrets["registration"])
        client.register_admin("hearth-service", "another password", secrets["registration"])
        with client.signed_in("hearth-service", secrets["jwt"]) as token:
            client.put_user("hearth-service", token, user_type="support", admin=True)
        server.configure(suspended=True, suspend_message="Closed until the bill is paid.")
        server.start()
        try:
            with pytest.raises(MatrixError, match="Closed until the bill is paid"):
                client.request("POST", "/_matrix/client/v3/createRoom", token=admin or "", body={})
            with client.signed_in("hearth-service", secrets["jwt"]) as token:
                assert client.request("GET", "/_synapse/admin/v2/users?guests=false", token=token)["total"] == 2
            assert server.seen().suspended
        finally:
            server.configure()
            server.start()
        assert client.request("POST", "/_matrix/client/v3/createRoom", token=admin or "", body={})["room_id"]


def test_a_wrong_token_signs_nobody_in(server: Homeserver) -> None:
    with (
        Client(server.seen().homeserver_url, server.spec.server_name) as client,
        pytest.raises(MatrixError),
        client.signed_in("admin", "a guessed secret"),
    ):
        pass


def test_neighbours_cannot_read_one_another_and_removing_leaves_nothing(server: Homeserver, agent: Agent) -> None:
    other = Homeserver(agent, "bob")
    other.make()
    mine, theirs = server.seen(), other.seen()
    if not mine.isolation:
        assert mine.details["uid"] != theirs.details["uid"]
        for path in ("", "config/homeserver.yaml", "config/signing.key", "postgres/PG_VERSION", "unit.json"):
            assert _reads(mine.details["uid"], other.folder / path) is False
        assert _reads(theirs.details["uid"], other.folder / "config" / "homeserver.yaml") is True
    sockets = agent.provider._path.parent / other.spec.server_id
    assert sockets.stat().st_mode & 0o077 == 0
    fence = next(fences)
    agent.provider.remove(other.spec.server_id, fence=fence, progress=quiet)
    assert other.spec.server_id not in agent.provider.observe()
    assert not other.folder.exists()
    assert not sockets.exists()
    assert not [path for path in (agent.state / "servers").iterdir() if other.spec.server_id in path.name]
    assert not [p for p in agent.family() if any(other.spec.server_id in word for word in p.cmdline())]
    agent.provider.remove(other.spec.server_id, fence=fence, progress=quiet)  # again is fine
    with pytest.raises(StaleFence):  # a worker that slept through it can't make it again
        agent.provider.ensure_storage(other.spec, fence=fence - 1, progress=quiet)


def _reads(uid: int, path: Path) -> bool:
    words = [
        "setpriv",
        f"--reuid={uid}",
        f"--regid={uid}",
        "--clear-groups",
        "ls" if path.is_dir() else "cat",
        str(path),
    ]
    return subprocess.run(words, capture_output=True, check=False, cwd="/").returncode == 0


def test_a_server_that_is_not_here_is_said(agent: Agent) -> None:
    with pytest.raises(ProviderError, match="no such server"):
        Homeserver(agent, "nobody").start()


def test_an_id_that_is_no_uuid_reaches_no_folder(agent: Agent) -> None:
    with pytest.raises(ProviderError, match="not a server's id"):
        agent.provider.remove("../../etc", fence=1, progress=quiet)


def test_kill_9_of_the_agent_leaves_no_orphan_and_a_reboot_heals(server: Homeserver, agent: Agent) -> None:
    before, family = server.seen(), agent.family()
    assert len(family) >= 2
    agent.end(signal.SIGKILL)
    wait_for(lambda: not any(process.is_running() for process in family), 10)
    with pytest.raises(ProviderError, match="does not answer") as unreachable:
        server.start()
    assert (unreachable.value.code, unreachable.value.retry) == ("AgentUnreachable", True)
    for rest in agent.provider._path.parent.iterdir():  # as /tmp is after a reboot
        if rest.is_dir():
            for path in rest.iterdir():
                path.unlink()
            rest.rmdir()
        else:
            rest.unlink()
    agent.start()
    after = server.wait_until_runs()
    assert after.homeserver_url == before.homeserver_url
    assert after.crashes == before.crashes


def test_an_orderly_end_stops_everything_and_a_stopped_server_stays_stopped(server: Homeserver, agent: Agent) -> None:
    family = agent.family()
    assert agent.end(signal.SIGTERM) == 0
    assert not any(process.is_running() for process in family)
    assert not agent.provider._path.parent.exists()
    agent.start()
    server.wait_until_runs()
    server.stop()
    agent.end(signal.SIGTERM)
    agent.start()
    seen = server.seen()
    assert (seen.exists, seen.running, seen.reason, agent.family()) == (True, False, "", [])
    server.start()


def test_a_second_agent_on_the_same_folder_is_refused(agent: Agent) -> None:
    words = [sys.executable, "-m", "provisioning.providers.local.agent", "--state", str(agent.state)]
    env = {**os.environ, **PATHS}
    second = subprocess.run(words, capture_output=True, text=True, check=False, timeout=20, env=env)
    assert second.returncode == 1
    assert "Another agent keeps the servers" in second.stderr
    assert agent.answers()
