"""Work is found without any message, and finding nothing is cheap."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import pytest
from django.db import connection
from django.utils import timezone
from pytest_django import DjangoAssertNumQueries

from provisioning import engine
from provisioning.models import Operation, ServerStatus
from provisioning.providers.base import ProviderError
from provisioning.spec import wanted
from provisioning.sweep import drifted, expired, sweep
from provisioning.worker import Watch
from tenants.models import Organisation, Server
from tests.provisioning.fakes import ScriptedProvider
from tests.services import wait

pytestmark = pytest.mark.django_db(transaction=True)


def work() -> None:
    """Do all that is due, as a worker does that never gets a message."""
    while due := [engine.run(operation) for operation in sweep()]:
        assert any(due)


def test_it_works(server: Server, provider: ScriptedProvider) -> None:
    work()
    assert ServerStatus.objects.get(server=server).phase == "ready"
    assert sweep() == []


def test_a_deletion_that_is_due(server: Server, provider: ScriptedProvider) -> None:
    work()
    later = timezone.now() + timedelta(hours=1)
    Server.objects.filter(pk=server.pk).update(desired="deleted", delete_after=later, generation=2)
    work()
    status = ServerStatus.objects.get(server=server)
    assert (status.phase, status.reason) == ("suspended", "DeletionScheduled")
    assert sweep() == []
    Server.objects.filter(pk=server.pk).update(delete_after=timezone.now())
    work()
    server.refresh_from_db()
    assert server.deleted
    assert sweep() == []


def test_a_deletion_taken_back(server: Server, provider: ScriptedProvider) -> None:
    work()
    later = timezone.now() + timedelta(hours=1)
    Server.objects.filter(pk=server.pk).update(desired="deleted", delete_after=later, generation=2)
    work()
    Server.objects.filter(pk=server.pk).update(desired="running", delete_after=None, generation=3)
    work()
    assert ServerStatus.objects.get(server=server).phase == "ready"
    assert "remove" not in provider.calls


def test_an_expired_lease(server: Server, provider: ScriptedProvider) -> None:
    (operation,) = sweep()
    past = timezone.now() - timedelta(seconds=1)
    Operation.objects.filter(pk=operation).update(state="running", lease_owner="dead", lease_until=past)
    assert sweep() == [operation]
    Operation.objects.filter(pk=operation).update(lease_until=timezone.now() + timedelta(seconds=9))
    assert sweep() == []
    # The clock was put back by a day: a lease or a back-off from before would bind for that long.
    ahead = timezone.now() + timedelta(days=1)
    Operation.objects.filter(pk=operation).update(lease_until=ahead, run_after=ahead)
    assert sweep() == [operation]


def test_a_failed_operation_is_left_to_a_person(server: Server, provider: ScriptedProvider) -> None:
    def fail() -> None:
        raise ProviderError("No.", retry=False)

    provider.faults["prepare"] = [fail]
    work()
    assert sweep() == []
    assert Operation.objects.filter(server=server).count() == 1


def test_a_poison_operation_blocks_nobody(make_server: Callable[..., Server], provider: ScriptedProvider) -> None:
    poison, good = make_server("poison"), make_server("good")

    def crash() -> None:
        raise RuntimeError("poison")

    provider.faults["prepare"] = [crash]
    first = sweep()
    engine.run(Operation.objects.get(server=poison).pk)
    assert len(first) == 2
    work()
    assert ServerStatus.objects.get(server=poison).phase == "failed"
    assert ServerStatus.objects.get(server=good).phase == "ready"


def test_a_worker_looks_by_itself(server: Server, provider: ScriptedProvider) -> None:
    watch = Watch()
    watch.start()
    try:
        wait(lambda: ServerStatus.objects.filter(server=server, phase="ready").exists())
    finally:
        watch.stop()
        watch.join()


def many(organisation: Organisation, count: int) -> None:
    """Make servers that are as they should be. The database copies one; making each in Python takes half a minute."""
    fields = {"organisation": organisation, "region": "local", "version": "1", "users": 1}
    first = Server.objects.create(name="n0", server_name="n0.x", **fields)
    applied = wanted(first, federation=True, now=timezone.now())
    ServerStatus.objects.create(server=first, observed_generation=1, applied=applied, phase="ready")
    with connection.cursor() as cursor:
        cursor.execute(
            """
            INSERT INTO tenants_server
            SELECT (jsonb_populate_record(first, jsonb_build_object(
                'id', gen_random_uuid(), 'name', 'n' || n, 'server_name', 'n' || n || '.x'))).*
            FROM tenants_server AS first, generate_series(1, %s) AS n
            """,
            [count - 1],
        )
        cursor.execute(
            """
            INSERT INTO provisioning_serverstatus
            SELECT (jsonb_populate_record(first, jsonb_build_object('server_id', one.id))).*
            FROM provisioning_serverstatus AS first, tenants_server AS one WHERE one.id <> first.server_id
            """
        )
        cursor.execute("VACUUM (ANALYZE) tenants_server, provisioning_serverstatus, provisioning_operation")


def test_with_many_servers_only_indexes_are_read(
    organisation: Organisation, provider: ScriptedProvider, django_assert_num_queries: DjangoAssertNumQueries
) -> None:
    many(organisation, 20_000)
    assert ServerStatus.objects.count() == 20_000
    for query in (drifted(), expired()):
        plan = query.values_list("pk", flat=True)[:200].explain()
        assert "Seq Scan on tenants_server" not in plan, plan
        assert "Seq Scan on provisioning_serverstatus" not in plan, plan
    with django_assert_num_queries(3):
        sweep()
