"""From wanted to ready and through each verb with the real agent, a real PostgreSQL and a real Synapse."""

from __future__ import annotations

import os
import re
import signal
from typing import Any

import httpx
import pytest

from provisioning import checks, engine, observer, services
from provisioning.models import Operation, ServerSecret, ServerStatus
from provisioning.providers.local.provider import LocalProvider
from tenants.errors import Refused
from tenants.models import Server
from tenants.releases import RELEASES, newest
from tenants.services import upgrade_server
from tests.services import wait

pytestmark = pytest.mark.django_db(transaction=True)


def carry_out(server: Server, **changes: Any) -> Operation:
    """Want something else, and do what that takes."""
    if changes:
        Server.objects.filter(pk=server.pk).update(generation=server.generation + 1, **changes)
        server.refresh_from_db()
    made = services.reconcile(server.pk)
    operation = made or Operation.objects.get(server=server, state="queued")
    engine.run(operation.pk)
    operation.refresh_from_db()
    assert operation.state == "succeeded", (operation.error, list(operation.events.values_list("message", flat=True)))
    return operation


def sign_in(server: Server, password: str) -> httpx.Response:
    url = ServerStatus.objects.get(server=server).homeserver_url
    body = {
        "type": "m.login.password",
        "identifier": {"type": "m.id.user", "user": "admin"},
        "password": password,
    }
    return httpx.post(f"{url}/_matrix/client/v3/login", json=body, trust_env=False, timeout=30)


def status(server: Server) -> tuple[str, str]:
    observer.observe()
    found = ServerStatus.objects.get(server=server)
    return found.phase, found.reason


def test_the_life_of_a_server(server: Server, agent: LocalProvider, alice: object) -> None:
    Server.objects.filter(pk=server.pk).update(version=newest().version)
    server.refresh_from_db()
    carry_out(server)
    assert status(server) == ("ready", "")
    first = services.reveal_password(alice, server=server)
    assert sign_in(server, first).status_code == 200

    carry_out(server, password_resets=1)
    second = services.reveal_password(alice, server=server)
    assert sign_in(server, first).status_code == 403
    signed_in = sign_in(server, second)
    assert signed_in.status_code == 200
    people_and_media_are_counted(server, signed_in.json()["access_token"])

    carry_out(server, restarts=1)
    assert status(server) == ("ready", "")

    carry_out(server, desired="suspended", suspend_message="Back on Monday.")
    assert status(server) == ("suspended", "Suspended")
    refused = sign_in(server, second)
    assert refused.status_code == 403
    assert "Back on Monday." in refused.text

    carry_out(server, desired="running", suspend_message="")
    assert sign_in(server, second).status_code == 200

    carry_out(server, desired="deleted")
    server.refresh_from_db()
    assert server.deleted
    assert agent.observe() == {}


def people_and_media_are_counted(server: Server, token: str) -> None:
    """As in places whose metrics Hearth can't read. Synapse writes down after some seconds who was seen."""
    url = ServerStatus.objects.get(server=server).homeserver_url
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/octet-stream"}
    answer = httpx.post(f"{url}/_matrix/media/v3/upload", content=b"x" * 5000, headers=headers, trust_env=False)
    assert answer.status_code == 200, answer.text
    kept = ServerSecret.objects.filter(server=server, name__in=("signing_key", "jwt"))
    secrets = {each.name: str(each.value) for each in kept}

    def counted() -> bool:
        found = checks.run(url, server.server_name, secrets, count=True)
        return (found.users, found.media_bytes) == (1, 5000)

    wait(counted)


def test_upgrades_changes_and_a_crash(server: Server, agent: LocalProvider, alice: object) -> None:
    newer, older = (release.version for release in RELEASES[:2])
    Server.objects.filter(pk=server.pk).update(version=older)
    server.refresh_from_db()
    carry_out(server)
    assert really_runs(server) == older
    password = services.reveal_password(alice, server=server)

    operation = carry_out(server, version=newer)
    assert operation.kind == "upgrade"
    assert (status(server), really_runs(server)) == (("ready", ""), newer)
    assert sign_in(server, password).status_code == 200

    upgrade_server(actor=alice, server=server, version=older)  # both know the other's schema: the way back is open
    server.refresh_from_db()
    carry_out(server)
    assert (status(server), really_runs(server)) == (("ready", ""), older)
    assert sign_in(server, password).status_code == 200

    # One from before the schema that this one needs: refused before anything is touched.
    closed = RELEASES[-1].version
    before = agent.observe()[str(server.pk)].details
    with pytest.raises(Refused, match=f"Synapse {closed}.*needs schema 84 or later, and {closed} knows only 83"):
        upgrade_server(actor=alice, server=server, version=closed)
    assert services.reconcile(server.pk) is None
    assert agent.observe()[str(server.pk)].details == before

    operation = carry_out(server, users=7)
    assert operation.kind == "configure"
    metrics = agent.observe()[str(server.pk)].metrics_url
    limit = re.compile(r"^synapse_admin_mau_max(\{.*\})? 7\.0$", re.MULTILINE)
    wait(lambda: limit.search(httpx.get(metrics, trust_env=False, timeout=30).text) is not None)
    assert (status(server), sign_in(server, password).status_code) == (("ready", ""), 200)

    os.kill(agent.observe()[str(server.pk)].details["synapse_pid"], signal.SIGKILL)
    wait(lambda: status(server) in {("degraded", "SynapseCrashed"), ("degraded", "Starting")})
    found = ServerStatus.objects.get(server=server)
    assert "started again" in found.message or "does not answer yet" in found.message
    assert (found.crashes, found.last_crash is not None, found.ready_since) == (1, True, None)
    wait(lambda: status(server) == ("ready", ""))
    assert sign_in(server, password).status_code == 200


def really_runs(server: Server) -> str:
    """Ask the homeserver itself, not Hearth, which version it is."""
    found = ServerStatus.objects.get(server=server)
    answer = httpx.get(f"{found.homeserver_url}/_matrix/federation/v1/version", trust_env=False, timeout=30)
    said = str(answer.json()["server"]["version"]).split(" ")[0]
    assert found.version == said
    return said


def test_a_cancelled_create_is_deleted_cleanly(server: Server, agent: LocalProvider, alice: object) -> None:
    operation = services.reconcile(server.pk)
    assert operation is not None
    services.cancel_operation(alice, operation=operation)
    carry_out(server, desired="deleted")
    server.refresh_from_db()
    assert server.deleted
