"""One operation, many workers: each step is done by one of them, and whoever lost the lease changes nothing."""

from __future__ import annotations

import threading
import time
from datetime import datetime, timedelta

import pytest
from django.db import connection
from django.db.models.functions import Now

from provisioning import engine, leases, services
from provisioning.models import Operation, ServerStatus
from provisioning.providers.base import ProviderError
from tenants.models import Server
from tests.provisioning.fakes import ScriptedProvider
from tests.services import wait

pytestmark = pytest.mark.django_db(transaction=True)


def in_threads(count: int, work: object) -> list[object]:
    """Run `work()` in `count` threads that begin together; return what they gave."""
    barrier, results = threading.Barrier(count), []

    def body() -> None:
        barrier.wait()
        try:
            results.append(work())  # type: ignore[operator]
        finally:
            connection.close()

    threads = [threading.Thread(target=body) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return results


def taken_over(operation: Operation) -> None:
    """Let the lease be over, as if its worker slept too long."""
    Operation.objects.filter(pk=operation.pk).update(lease_until=Now() - timedelta(seconds=1))


def test_two_workers_race_and_each_step_runs_once(server: Server, provider: ScriptedProvider) -> None:
    operation = services.reconcile(server.pk)
    assert operation is not None
    provider.faults["prepare"] = [lambda: time.sleep(0.3)]
    won = in_threads(4, lambda: engine.run(operation.pk))
    assert sorted(won, key=bool) == [False, False, False, True]
    assert provider.calls == ["prepare", "ensure_storage", "configure", "start"]
    operation.refresh_from_db()
    assert (operation.state, operation.fence) == ("succeeded", 1)


def test_many_reconcilers_make_one_operation(server: Server, provider: ScriptedProvider) -> None:
    made = in_threads(6, lambda: services.reconcile(server.pk))
    assert len([operation for operation in made if operation]) == 1
    assert Operation.objects.filter(server=server).count() == 1


def test_a_lost_lease_can_write_nothing(server: Server, provider: ScriptedProvider) -> None:
    operation = services.reconcile(server.pk)
    assert operation is not None
    old = leases.claim(operation.pk)
    assert old is not None
    taken_over(operation)
    new = leases.claim(operation.pk)
    assert new is not None
    assert new.fence > old.fence
    with pytest.raises(leases.LeaseLostError):
        old.log("I am still here.")
    with pytest.raises(leases.LeaseLostError), old.write(state="succeeded"):
        pass
    assert not old.renew()
    new.log("Mine.")
    assert list(operation.events.values_list("message", flat=True)) == ["Mine."]


def test_a_worker_that_slept_stops_quietly_and_the_other_finishes(server: Server, provider: ScriptedProvider) -> None:
    operation = services.reconcile(server.pk)
    assert operation is not None

    def sleep_too_long() -> None:
        taken_over(operation)
        assert in_threads(1, lambda: engine.run(operation.pk)) == [True]

    provider.faults["configure"] = [sleep_too_long]
    engine.run(operation.pk)
    operation.refresh_from_db()
    assert (operation.state, operation.fence, operation.error) == ("succeeded", 2, "")
    assert provider.calls.count("start") == 1


def test_the_provider_refuses_the_older_fence_and_the_worker_goes_quietly(
    server: Server, provider: ScriptedProvider
) -> None:
    operation = services.reconcile(server.pk)
    assert operation is not None
    provider.fences[str(server.pk)] = 99
    engine.run(operation.pk)
    operation.refresh_from_db()
    assert operation.state == "running"
    assert operation.error == ""
    for _ in range(engine.MAX_ATTEMPTS - 1):
        Operation.objects.update(lease_until=None)
        engine.run(operation.pk)
    operation.refresh_from_db()
    assert (operation.state, operation.error_code) == ("failed", "FenceAhead"), "nobody took over: now it is said"


def test_a_lease_is_kept_while_a_step_runs(
    server: Server, provider: ScriptedProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "RENEW_EVERY", 0.1)
    monkeypatch.setattr(leases, "LEASE", timedelta(minutes=1))
    operation = services.reconcile(server.pk)
    assert operation is not None
    others: list[bool] = []

    def lease_until() -> datetime:
        until = Operation.objects.get(pk=operation.pk).lease_until
        assert until is not None
        return until

    def long_step() -> None:
        before = lease_until()
        wait(lambda: lease_until() > before)
        others.extend(bool(won) for won in in_threads(1, lambda: engine.run(operation.pk)))

    provider.faults["prepare"] = [long_step]
    engine.run(operation.pk)
    operation.refresh_from_db()
    assert others == [False]
    assert (operation.state, operation.fence) == ("succeeded", 1)


def test_a_step_that_hangs_loses_its_lease_in_the_end(
    server: Server, provider: ScriptedProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "LEASE", timedelta(seconds=0.3))
    monkeypatch.setattr(leases, "RENEW_EVERY", 0.1)
    monkeypatch.setattr(leases, "STEP_LIMIT", 0.3)
    operation = services.reconcile(server.pk)
    assert operation is not None
    others: list[object] = []

    def hang() -> None:
        end = time.monotonic() + 60
        while True not in others and time.monotonic() < end:
            time.sleep(0.2)
            others.extend(in_threads(1, lambda: engine.run(operation.pk)))

    provider.faults["prepare"] = [hang]
    engine.run(operation.pk)
    assert others[-1] is True


def test_a_step_that_ends_its_workers_comes_to_an_end(server: Server, provider: ScriptedProvider) -> None:
    """A worker that is killed writes nothing; only the count written before the step says that it was there."""
    operation = services.reconcile(server.pk)
    assert operation is not None

    class Killed(BaseException):
        pass

    def kill() -> None:
        raise Killed

    provider.faults["configure"] = [kill] * 99
    for _ in range(engine.MAX_ATTEMPTS):
        with pytest.raises(Killed):
            engine.run(operation.pk)
        taken_over(operation)
    engine.run(operation.pk)
    operation.refresh_from_db()
    assert (operation.state, operation.error_code) == ("failed", "WorkerLost")
    assert ServerStatus.objects.get(server=server).reason == "WorkerLost"


def test_a_worker_told_to_stop_leaves_the_operation_between_two_steps(
    server: Server, provider: ScriptedProvider
) -> None:
    operation = services.reconcile(server.pk)
    assert operation is not None
    provider.faults["ensure_storage"] = [engine.stopping.set]
    engine.run(operation.pk)
    operation.refresh_from_db()
    assert (operation.state, operation.lease_until) == ("queued", None)
    assert provider.calls == ["prepare", "ensure_storage"]
    engine.stopping.clear()
    engine.run(operation.pk)
    assert provider.calls == ["prepare", "ensure_storage", "configure", "start"]


def test_back_off_grows(server: Server, provider: ScriptedProvider, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "FIRST_WAIT", 1.0)

    def fail() -> None:
        raise ProviderError("Not now.")

    provider.faults["prepare"] = [fail] * 3
    operation = services.reconcile(server.pk)
    assert operation is not None
    waits = []
    for _ in range(3):
        Operation.objects.filter(pk=operation.pk).update(run_after=Now())
        engine.run(operation.pk)
        assert not engine.run(operation.pk), "taken before its time"
        operation.refresh_from_db()
        waits.append((operation.run_after - server.created).total_seconds())
    assert 1.5 < waits[1] - waits[0] + 1 < 3.5
    assert waits[2] - waits[1] > waits[1] - waits[0]
