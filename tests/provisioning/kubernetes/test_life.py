"""From the verb to READY and through each verb: the real engine, a real API server, the real operator."""

from __future__ import annotations

import base64
import time
from typing import Any

import pytest

from provisioning import engine, observer, services
from provisioning.models import Operation, Region, ServerStatus
from tenants.models import Plan, Server
from tenants.releases import RELEASES
from tenants.services import change_plan
from tests.cluster.api import Api
from tests.operator.process import Operator
from tests.provisioning.kubernetes.conftest import BASE, SERVER
from tests.provisioning.kubernetes.pods import Pods

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.xdist_group("cluster")]


def carry_out(server: Server, **changes: Any) -> Operation:
    """Want something else, and do what that takes."""
    if changes:
        Server.objects.filter(pk=server.pk).update(generation=server.generation + 1, **changes)
        server.refresh_from_db()
    operation = services.reconcile(server.pk)
    assert operation is not None
    engine.run(operation.pk)
    operation.refresh_from_db()
    log = list(operation.events.values_list("message", flat=True))
    assert operation.state == "succeeded", (operation.error, log)
    return operation


def becomes(server: Server, phase: str, reason: str = "") -> None:
    """Look until the observer says so: on a busy machine the operator's own check may come late once."""
    end = time.monotonic() + 60
    while True:
        observer.observe()
        found = ServerStatus.objects.get(server=server)
        if (found.phase, found.reason) == (phase, reason):
            return
        assert time.monotonic() < end, (found.phase, found.reason, found.message)
        time.sleep(0.2)


def namespace(server: Server) -> str:
    return f"hearth-{server.pk}"


def spec(api: Api, server: Server) -> dict[str, Any]:
    found = api.get(*SERVER, namespace(server))
    assert found is not None
    return dict(found["spec"])


def signing_key(api: Api, server: Server) -> str:
    found = api.get("v1", "Secret", "synapse-secrets", namespace(server))
    assert found is not None
    return base64.b64decode(found["data"]["signing.key"]).decode()


def test_the_life_of_a_server(server: Server, api: Api, pods: Pods, operator: Operator, alice: object) -> None:
    carry_out(server)
    becomes(server, "ready")
    found = ServerStatus.objects.get(server=server)
    assert found.homeserver_url == f"https://berry.{BASE}"
    users, key = pods.users[namespace(server)], signing_key(api, server)
    first = services.reveal_password(alice, server=server)
    assert users["admin"]["password"] == first
    assert users["hearth-service"]["user_type"] == "support"

    carry_out(server, password_resets=1)
    assert users["admin"]["password"] == services.reveal_password(alice, server=server) != first

    carry_out(server, restarts=1)
    assert spec(api, server)["restarts"] == 1
    becomes(server, "ready")

    carry_out(server, users=7, vcpu=4, memory_mb=8192, disk_gb=40)
    wanted = spec(api, server)
    assert wanted["limits"]["maxUsers"] == 7
    assert wanted["size"] == {"cpu": 4, "memory": "8192Mi", "disk": "40Gi", "objectStorage": "100Gi"}
    assert wanted["workers"]["generic"]["min"] == 1
    assert wanted["restarts"] == 1, "what a verb wrote by itself outlives a write of the whole"

    change_plan(actor=alice, plan=Plan.objects.get(), database_instances=2, database_synchronous=True, workers=2)
    server.refresh_from_db()
    assert carry_out(server).kind == "configure"
    wanted = spec(api, server)
    assert wanted["database"]["cluster"]["instances"] == 2
    assert wanted["database"]["cluster"]["synchronous"] is True
    assert wanted["workers"]["generic"] == {"min": 1, "max": 2, "targetCPUPercent": 70}

    carry_out(server, desired="suspended", suspend_message="Back on Monday.")
    becomes(server, "suspended", "Suspended")
    assert spec(api, server)["suspended"] == {"message": "Back on Monday."}

    carry_out(server, desired="running", suspend_message="")
    assert "suspended" not in spec(api, server)
    becomes(server, "ready")
    assert signing_key(api, server) == key

    carry_out(server, desired="deleted")
    server.refresh_from_db()
    assert server.deleted
    assert api.get("v1", "Namespace", namespace(server)) is None


def test_an_upgrade_and_the_way_back(server: Server, region: Region, api: Api, operator: Operator) -> None:
    newest, older, oldest = (release.version for release in RELEASES[:3])
    Server.objects.filter(pk=server.pk).update(version=oldest)
    server.refresh_from_db()
    carry_out(server)
    key = signing_key(api, server)
    assert spec(api, server)["synapse"] == {"version": oldest, "schemaVersion": 93, "compatVersion": 84}
    carry_out(server, version=newest)
    assert spec(api, server)["synapse"] == {"version": newest, "schemaVersion": 94, "compatVersion": 84}
    assert ServerStatus.objects.get(server=server).version == newest
    assert spec(api, server)["restarts"] == 0, "its processes were replaced once, for the release alone"
    carry_out(server, version=oldest)
    gone_back = {"version": oldest, "schemaVersion": 94, "compatVersion": 84, "releaseSchemaVersion": 93}
    assert spec(api, server)["synapse"] == gone_back
    becomes(server, "ready")
    carry_out(server, version=older)
    assert spec(api, server)["synapse"] == {"version": older, "schemaVersion": 94, "compatVersion": 84}
    assert signing_key(api, server) == key
