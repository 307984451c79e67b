"""Workers that die, and workers at once, on a real cluster: the server comes up once, with one key."""

from __future__ import annotations

import threading

import pytest
from django.db import connection

from provisioning import engine, services
from provisioning.models import Operation, ServerSecret
from tenants.models import Server
from tests.cluster.api import Api
from tests.operator.process import Operator
from tests.provisioning.killing import kill_at
from tests.provisioning.kubernetes.conftest import SERVER
from tests.provisioning.kubernetes.test_life import becomes, carry_out, signing_key, spec
from tests.services import wait

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.xdist_group("cluster")]


def killed(operation: Operation, verb: str, when: str) -> None:
    """Let another process work on the operation, and kill it there; its lease is then over."""
    kill_at(verb, "tests.provisioning.kubernetes.runner", str(operation.pk), verb, when)
    # As if its ten seconds were over.
    Operation.objects.filter(pk=operation.pk).update(lease_until=operation.created)


def take_over(operation: Operation) -> None:
    """Work on it here. What PostgreSQL had from the other just before its end may have kept its lease once more."""
    wait(lambda: engine.run(operation.pk))
    operation.refresh_from_db()


@pytest.mark.parametrize(("verb", "when"), [("ensure_storage", "after"), ("configure", "after"), ("start", "before")])
def test_another_worker_takes_over(server: Server, api: Api, operator: Operator, verb: str, when: str) -> None:
    operation = services.reconcile(server.pk)
    assert operation is not None
    killed(operation, verb, when)
    take_over(operation)
    assert (operation.state, operation.error) == ("succeeded", "")
    becomes(server, "ready")
    kept = ServerSecret.objects.get(server=server, name="signing_key")
    assert signing_key(api, server).strip() == str(kept.value)


def test_killed_between_stop_and_start_it_restarts_once(server: Server, api: Api, operator: Operator) -> None:
    carry_out(server)
    Server.objects.filter(pk=server.pk).update(restarts=1, generation=2)
    operation = services.reconcile(server.pk)
    assert operation is not None
    killed(operation, "stop", "after")
    take_over(operation)
    assert operation.state == "succeeded", operation.error
    assert spec(api, server)["restarts"] == 1


def test_killed_while_it_removes(server: Server, api: Api, operator: Operator) -> None:
    carry_out(server)
    Server.objects.filter(pk=server.pk).update(desired="deleted", generation=2)
    operation = services.reconcile(server.pk)
    assert operation is not None
    killed(operation, "_gone", "before")
    take_over(operation)
    assert operation.state == "succeeded", operation.error
    assert api.get("v1", "Namespace", f"hearth-{server.pk}") is None


def test_two_workers_at_once(server: Server, api: Api, operator: Operator) -> None:
    operation = services.reconcile(server.pk)
    assert operation is not None
    taken: list[bool] = []

    def work() -> None:
        try:
            taken.append(engine.run(operation.pk))
        finally:
            connection.close()

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == [False, True]
    operation.refresh_from_db()
    assert (operation.state, operation.fence) == ("succeeded", 1)
    found = api.get(*SERVER, f"hearth-{server.pk}")
    assert found is not None
    assert found["metadata"]["annotations"]["hearth.host/fence"] == "1"
