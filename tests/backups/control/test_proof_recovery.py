"""Recovery tests when something goes wrong: whatever it is, it is told, the grant ends and nothing is left running.

The provider here does what the test scripts, so that it can fail; `tests/backups/proofs` brings a real server back.
"""

from __future__ import annotations

import shutil
import threading
from collections import namedtuple
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
from django.conf import settings
from django.db import connection
from django.utils import timezone

from accounts.models import User
from audit.models import AuditEvent
from backups import alerts, checking, tasks
from backups.models import Alarm, Line, Policy, Proof, RegionStores, Restore, RestorePoint, ServerBackups, Store
from backups.proofs import comparing, ends, pages, recovery, room, schedule, turns
from backups.proofs.context import Context
from backups.proofs.leases import Lease, LeaseLostError, claim
from provisioning import engine, services
from provisioning.models import Operation, Region, ServerSecret
from provisioning.providers.base import ProviderError, Recovering
from security.models import UnwrapGrant
from tenants.errors import Refused
from tenants.models import Server
from tests.provisioning.conftest import make_server, organisation, provider, server  # noqa: F401 (fixtures)
from tests.provisioning.fakes import ScriptedProvider

pytestmark = pytest.mark.django_db(transaction=True)
usage = namedtuple("usage", "total used free")
POINT = "20261120t120000z-00000000"


@pytest.fixture
def kept(server: Server, provider: ScriptedProvider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Server:  # noqa: F811
    """A server that runs, with a whole restore point and a minute of history behind it."""
    store = Store.objects.create(code="here", name="Here", kind="folder", folder=str(tmp_path))
    RegionStores.objects.create(region=Region.objects.get(code="local"), first=store)
    made = services.reconcile(server.pk)
    assert made is not None
    assert engine.run(made.pk)
    now = timezone.now()
    at, until = now - timedelta(minutes=10), now - timedelta(minutes=1)
    RestorePoint.objects.create(
        server=server, identity=POINT, at=at, kind="daily", line="l", synapse_version=server.version
    )
    Line.objects.create(server=server, identity="l", begun=at, until=until)
    ServerBackups.objects.filter(server=server).update(line="l", begun=at, until=until, reported=now)
    monkeypatch.setattr(comparing, "compare", lambda *_: comparing.Compared(told={"accounts": 2, "rooms": 1}))
    provider.calls.clear()
    return server


def begun(server: Server) -> Proof:  # noqa: F811
    """Begin a recovery test, and let it come as far as the provider."""
    made = schedule.make(server, Proof.Kind.RECOVERY)
    assert made is not None
    return turn(made)


def turn(proof: Proof) -> Proof:
    """Take a turn now."""
    Proof.objects.filter(pk=proof.pk).update(run_after=timezone.now() - timedelta(seconds=1))
    turns.run(proof.pk)
    proof.refresh_from_db()
    return proof


def claim_now(proof: Proof) -> Lease:
    """Take it, as a worker does."""
    Proof.objects.filter(pk=proof.pk).update(run_after=timezone.now() - timedelta(seconds=1))
    lease = claim(proof.pk)
    assert lease is not None
    return lease


def in_a_thread(work: Callable[[], int]) -> int:
    """Do it as another worker would."""

    def apart() -> int:
        try:
            return work()
        finally:
            connection.close()

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(apart).result()


def told(provider: ScriptedProvider, proof: Proof, state: str, **values: object) -> None:  # noqa: F811
    provider.recovered[str(proof.instance)] = Recovering(state=state, **values)  # type: ignore[arg-type]


def live_grants() -> list[UnwrapGrant]:
    return list(UnwrapGrant.objects.filter(revoked_at=None))


def test_a_test_that_passes_leaves_evidence_and_nothing_else(kept: Server, provider: ScriptedProvider) -> None:  # noqa: F811
    proof = begun(kept)
    (grant,) = live_grants()
    recovered = provider.recoveries[str(proof.instance)]
    assert (recovered.source, recovered.holder) == (str(kept.pk), str(kept.pk))
    assert recovered.request["grant"] == str(grant.pk)
    assert recovered.request["settle"] == {"sessions": "all"}, "nobody's session works on a throw-away instance"
    assert not {"to", "point"} & set(recovered.request), "the latest that there is"
    spec = provider.specs[str(proof.instance)]
    assert (spec.federation, spec.backup, spec.server_name) == (False, {}, kept.server_name)
    told(provider, proof, "running", step="base", done_bytes=5, total_bytes=10)
    assert (turn(proof).done_bytes, proof.total_bytes, proof.result) == (5, 10, "")
    told(provider, proof, "done", result={"last_commit": "2026-11-20T12:00:00Z", "media_files": 3, "secret": "x"})
    turn(proof)
    assert proof.result == "passed", proof.summary
    assert proof.rto_seconds is not None
    assert proof.rpo_seconds is not None
    assert proof.rpo_seconds >= 60
    assert proof.evidence["restored"] == {"last_commit": "2026-11-20T12:00:00Z", "media_files": 3}
    assert proof.evidence["checks"]["signed_in"]
    assert live_grants() == []
    assert proof.removed is not None
    assert provider.calls[-1] == "remove"
    assert RestorePoint.objects.get().proved == proof.begun
    assert AuditEvent.objects.get(verb="backups.proof").after["result"] == "passed"
    assert "3 files" in proof.summary
    assert services.reconcile(kept.pk) is None, "the server itself is left alone"


def test_the_next_worker_goes_on_where_one_was_killed(kept: Server, provider: ScriptedProvider) -> None:  # noqa: F811
    proof = begun(kept)
    (first,) = live_grants()
    Proof.objects.update(run_after=timezone.now())
    assert claim(proof.pk) is not None  # and this worker is killed
    Proof.objects.update(lease_until=timezone.now() - timedelta(seconds=1))
    told(provider, proof, "running")
    turn(proof)
    (second,) = live_grants()
    assert second.pk != first.pk
    assert provider.recoveries[str(proof.instance)].request["grant"] == str(second.pk)
    assert (proof.fence, proof.step, provider.calls.count("recover")) == (2, "follow", 2)
    told(provider, proof, "done")
    assert turn(proof).result == "passed"
    assert proof.removed is not None


def test_damage_names_the_points_and_has_all_of_it_read(kept: Server, provider: ScriptedProvider) -> None:  # noqa: F811
    other = RestorePoint.objects.create(
        server=kept, identity="20261119t120000z-00000000", at=timezone.now() - timedelta(days=1), kind="daily", line="l"
    )
    proof = begun(kept)
    text = f"base is damaged. Restore points that need it: {POINT}. Nothing that ran before was touched."
    told(provider, proof, "failed", code="Damaged", text=text)
    turn(proof)
    assert (proof.result, proof.summary) == ("failed", text)
    assert proof.evidence["damaged_restore_points"] == [POINT]
    assert {row.identity: row.state for row in RestorePoint.objects.all()} == {
        POINT: "damaged",
        other.identity: "whole",
    }
    assert ServerBackups.objects.get().next_reading is not None
    assert (live_grants(), proof.removed is not None) == ([], True)
    alerts.observe()
    assert "did not pass" in Alarm.objects.get(cause="proof").text


def test_pages_quote_no_log_no_folder_and_no_secret(kept: Server, provider: ScriptedProvider) -> None:  # noqa: F811
    proof = begun(kept)
    password = str(ServerSecret.objects.get(server=kept, name="database").value)
    text = f"/srv/hearth/1/data can't be read as {password}. Its last lines:\nFATAL: {password} at /srv/hearth"
    told(provider, proof, "failed", code="RestoreCrashed", text=text)
    turn(proof)
    assert proof.summary == "a folder of the machine can't be read as [database]."
    assert proof.evidence["log"] == "FATAL: [database] at /srv/hearth", "staff alone see it"
    assert "log" not in str(pages.facts(proof))


def test_what_may_pass_is_tried_again_and_then_told(kept: Server, provider: ScriptedProvider) -> None:  # noqa: F811
    proof = begun(kept)
    for _ in range(recovery.TRIES + 1):
        told(provider, proof, "failed", code="StoreAway", text="The store does not answer.", retry=True)
        turn(proof)  # begins again
        turn(proof)
    assert (proof.result, proof.evidence["code"]) == ("failed", "StoreAway")
    assert proof.removed is not None


def test_a_provider_that_is_away_is_a_test_that_did_not_take_place(
    kept: Server,
    provider: ScriptedProvider,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(turns, "MOST_FAILURES", 3)

    def away() -> None:
        raise ProviderError("The agent does not answer.", code="AgentUnreachable")

    provider.faults["recover"] = [away] * 3
    proof = begun(kept)
    assert (proof.result, proof.failures) == ("", 1)
    for _ in range(2):
        turn(proof)
    assert (proof.result, proof.summary) == ("missed", "The agent does not answer.")
    assert live_grants() == []
    alerts.observe()
    assert "The agent does not answer." in Alarm.objects.get(cause="proof").text


@pytest.mark.parametrize(("code", "result"), [("AgentUnreachable", "missed"), ("SynapseEnded", "failed")])
def test_only_what_backups_are_to_blame_for_has_failed(
    kept: Server,
    provider: ScriptedProvider,  # noqa: F811
    code: str,
    result: str,
) -> None:
    def fault() -> None:
        raise ProviderError("It did not start.", code=code, retry=False)

    proof = begun(kept)
    provider.faults["start"] = [fault]
    told(provider, proof, "done")
    assert turn(proof).result == result


def test_an_instance_that_cant_be_removed_now_is_removed_later(kept: Server, provider: ScriptedProvider) -> None:  # noqa: F811
    proof = begun(kept)

    def away() -> None:
        raise ProviderError("The agent does not answer.", code="AgentUnreachable")

    provider.faults["remove"] = [away]
    told(provider, proof, "failed", code="ReplayFailed", text="Replay ended too soon.")
    turn(proof)
    assert (proof.result, proof.removed) == ("failed", None)
    assert checking.forget_old(timezone.now() + timedelta(days=500)) == 0, "its row is all that knows of the instance"
    assert ends.sweep() == 0, "who ended it may still be at it"
    Proof.objects.update(ended=timezone.now() - timedelta(minutes=2))
    beside: list[int] = []
    provider.faults["remove"] = [lambda: beside.append(in_a_thread(ends.sweep))]
    assert ends.sweep() == 1
    assert beside == [0], "a removal that lasts holds one worker"
    assert ends.sweep() == 0
    assert checking.forget_old(timezone.now() + timedelta(days=500)) == 1


def test_a_restore_by_its_people_comes_first(kept: Server, provider: ScriptedProvider) -> None:  # noqa: F811
    proof = begun(kept)
    before = proof.instance
    assert ends.give_way(kept.pk, "a restore comes first") == 1
    assert live_grants() == []
    assert ends.sweep() == 1
    assert provider.calls[-1] == "remove"
    proof.refresh_from_db()
    assert (proof.result, proof.step) == ("", "begin")
    assert proof.run_after is not None
    assert proof.run_after > timezone.now() + timedelta(minutes=30)
    turn(proof)
    assert proof.instance not in (None, before)
    told(provider, proof, "done")
    assert turn(proof).result == "passed"


def test_no_grant_is_left_of_a_worker_that_lost_its_test(kept: Server, provider: ScriptedProvider) -> None:  # noqa: F811
    proof = begun(kept)
    Proof.objects.update(grant=None)  # as of a worker that died before it wrote it down
    assert len(live_grants()) == 1
    assert ends.give_way(kept.pk, "a restore comes first") == 1
    assert live_grants() == []
    turn(proof)
    lease = claim_now(proof)
    assert ends.give_way(kept.pk, "a restore comes first") == 1
    with pytest.raises(LeaseLostError):
        Context(lease=lease, lost=threading.Event()).open_grant("too late")
    assert live_grants() == []


def test_what_is_missing_on_it_fails_the_test(
    kept: Server,
    provider: ScriptedProvider,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lacking = comparing.Compared(told={"accounts": 1}, wrong=["Accounts that are missing: 1 of 2."])
    monkeypatch.setattr(comparing, "compare", lambda *_: lacking)
    proof = begun(kept)
    told(provider, proof, "done")
    turn(proof)
    assert proof.result == "failed"
    assert "Accounts that are missing: 1 of 2." in proof.summary
    assert RestorePoint.objects.get().proved is None


def test_a_region_has_room_for_so_many(
    kept: Server,
    make_server: Callable[..., Server],  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    proof = begun(kept)
    assert proof.instance is not None
    region = Region.objects.get(code="local")
    assert not room.has_room(region, None)
    monkeypatch.setitem(settings.HEARTH, "HEARTH_RECOVERY_TESTS", 2)
    assert room.has_room(region, None)


def test_a_disk_that_would_get_short_is_spared(kept: Server) -> None:
    RestorePoint.objects.update(database_bytes=2**60)
    proof = begun(kept)
    assert proof.result == "missed"
    assert "MB left" in proof.summary
    assert proof.instance is None


def test_what_is_under_way_has_its_share_of_the_disk(kept: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    region, gb = Region.objects.get(code="local"), 10**9
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(total=200 * gb, used=0, free=100 * gb))
    RestorePoint.objects.update(media_bytes=60 * gb)
    point = RestorePoint.objects.get()
    assert room.has_disk(region, point)
    proof = begun(kept)
    assert proof.instance is not None
    assert not room.has_disk(region, point), "the first has not written it yet, but will"
    Proof.objects.update(done_bytes=9, total_bytes=10)
    assert room.has_disk(region, point)
    Proof.objects.update(step="check")
    operation = Operation.objects.create(server=kept, kind="restore", generation=9, run_after=timezone.now())
    store = Store.objects.get()
    columns = {"moment": timezone.now(), "mode": "beside", "begun": timezone.now()}
    Restore.objects.create(operation=operation, source=kept, store=store, **columns)
    assert room.promised() == 60 * gb, "what people restore has its share too"


def test_nothing_to_bring_back_is_told(kept: Server) -> None:
    RestorePoint.objects.update(state="damaged")
    proof = begun(kept)
    assert proof.result == "missed"
    assert "no whole restore point" in proof.summary


def test_they_are_due_by_the_policy(kept: Server, provider: ScriptedProvider) -> None:  # noqa: F811
    Policy.objects.create(plan=None, server=None, prove_days=3)
    tasks.prove_due.run()
    row = ServerBackups.objects.get()
    assert row.next_proof is not None
    assert row.next_reading is not None
    assert timezone.now() < row.next_proof < timezone.now() + timedelta(days=3)
    assert timezone.now() < row.next_reading < timezone.now() + timedelta(days=7)
    assert not Proof.objects.exists()
    ServerBackups.objects.update(next_proof=timezone.now())
    assert schedule.place_due() == 1
    assert schedule.place_due() == 0, "the region has room for one"
    row.refresh_from_db()
    assert row.next_proof is not None
    assert row.next_proof > timezone.now()
    assert schedule.due_now() == [Proof.objects.get().pk]


def test_of_all_regions_who_has_waited_longest_is_read_first(
    kept: Server,
    make_server: Callable[..., Server],  # noqa: F811
) -> None:
    local = Region.objects.get(code="local")
    north = Region.objects.create(code="north", name="North", provider=local.provider)
    RegionStores.objects.create(region=north, first=Store.objects.get())
    far = make_server("far")
    Server.objects.filter(pk=far.pk).update(region="north")
    now = timezone.now()
    ServerBackups.objects.create(server=far, reported=now, next_reading=now - timedelta(days=2))
    ServerBackups.objects.filter(server=kept).update(next_reading=now - timedelta(days=1))
    assert schedule.place_due() == 1
    first = Proof.objects.get(kind="reading")
    assert (first.server, first.region) == (far, north)
    Proof.objects.update(result="passed")
    ServerBackups.objects.filter(server=far).update(next_reading=now - timedelta(days=2))
    ends.read_soon(kept.pk)
    assert schedule.place_due() == 1
    assert Proof.objects.get(kind="reading", result="").server == kept, "something of it is damaged: it goes first"


def test_a_server_that_rests_is_not_tried(kept: Server) -> None:
    ServerBackups.objects.update(next_proof=timezone.now())
    Server.objects.update(desired="suspended")
    assert schedule.place_due() == 0
    assert not Proof.objects.exists()
    assert ServerBackups.objects.filter(next_proof__gt=timezone.now()).exists()


def test_people_ask_for_one_once_an_hour(kept: Server, alice: User) -> None:
    proof = schedule.prove_now(alice, server=kept)
    with pytest.raises(Refused, match="in progress"):
        schedule.prove_now(alice, server=kept)
    Proof.objects.update(result="passed")
    with pytest.raises(Refused, match="last hour"):
        schedule.prove_now(alice, server=kept)
    Proof.objects.update(begun=timezone.now() - timedelta(hours=2))
    assert schedule.prove_now(alice, server=kept).pk != proof.pk
    Proof.objects.update(result="passed", begun=timezone.now() - timedelta(hours=2))
    RestorePoint.objects.update(state="damaged")
    with pytest.raises(Refused, match="no whole restore point"):
        schedule.prove_now(alice, server=kept)
