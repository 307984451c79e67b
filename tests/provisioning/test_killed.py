"""`kill -9` of a worker in the middle of a step: another one takes over when the lease is over, and nothing is lost."""

from __future__ import annotations

import pytest
from django.db.models.functions import Now

from provisioning import engine, leases, services
from provisioning.models import Operation, ServerSecret, ServerStatus
from provisioning.sweep import sweep
from tenants.models import Server
from tests.provisioning.fakes import ScriptedProvider
from tests.provisioning.killing import kill_at

pytestmark = pytest.mark.django_db(transaction=True)


def killed_in(step: str, operation: object, provider: ScriptedProvider) -> None:
    """Let another process work on the operation, and kill it inside `step`."""
    kill_at(step, "tests.provisioning.runner", str(operation), provider.url, step, provider.request.decode())


def signing_keys(server: Server) -> set[str]:
    return {str(secret.value) for secret in ServerSecret.objects.filter(server=server, name="signing_key")}


@pytest.mark.parametrize("step", ["configure", "start"])
def test_another_worker_takes_over(server: Server, provider: ScriptedProvider, step: str) -> None:
    operation = services.reconcile(server.pk)
    assert operation is not None
    killed_in(step, operation.pk, provider)
    keys = signing_keys(server)
    mine = Operation.objects.filter(pk=operation.pk)
    assert mine.filter(lease_until__lte=leases.from_now(leases.LEASE)).exists(), "it ends by itself, and soon"
    mine.update(lease_until=leases.from_now(leases.FURTHEST / 2))
    assert not engine.run(operation.pk), "the lease still stands"
    assert not sweep()
    mine.update(lease_until=Now())
    assert sweep() == [operation.pk]
    engine.run(operation.pk)
    operation.refresh_from_db()
    assert (operation.state, operation.fence) == ("succeeded", 2)
    assert ServerStatus.objects.get(server=server).phase == "ready"
    assert provider.calls[0] == step, "the steps that were done are not done again"
    assert not keys or keys == signing_keys(server)
