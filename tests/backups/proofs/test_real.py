"""A real server with people on it is brought back by a recovery test, beside the living one, and compared with it.

All is real: the agent, PostgreSQL, Synapse, its engine, grants over mutual TLS, the keyring. One server serves all.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.utils import timezone

from accounts.models import User
from audit.services import SYSTEM
from backups import alerts, orders, places, wiring
from backups.copying import schedule as copies
from backups.models import Alarm, Copy, Drill, Order, Proof, RegionStores, RestorePoint, ServerBackups, Store
from backups.proofs import comparing, drills, pages, schedule, turns
from provisioning import engine, identities, services
from provisioning.matrix import Homeserver
from provisioning.models import Region, ServerSecret, ServerStatus
from provisioning.providers.local.provider import LocalProvider
from security.models import UnwrapGrant
from tenants.models import Server
from tenants.releases import newest
from tests.backups.restore.synapse import Person
from tests.bench.floor import free_ports
from tests.provisioning.conftest import agent, make_server, organisation, server, state  # noqa: F401 (fixtures)
from tests.provisioning.killing import kill_at
from tests.provisioning.test_agents import listening
from tests.services import wait

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.xdist_group("agents")]
PATIENCE = 300.0


@dataclass
class Living:
    """The living server and one person on it."""

    server: Server
    agent: LocalProvider
    state: Path
    room: str = ""

    def client(self) -> Homeserver:
        url = ServerStatus.objects.get(server=self.server).homeserver_url
        return Homeserver(url, self.server.server_name)

    def person(self, client: Homeserver) -> Person:
        return Person(client, "admin", str(ServerSecret.objects.get(server=self.server, name="jwt").value))

    def talk(self) -> None:
        """Have a room with messages, and all of it in a restore point."""
        with self.client() as client:
            admin = self.person(client)
            self.room = str(admin.ask("POST", "createRoom", {})["room_id"])
            for number in range(5):
                admin.say(self.room, f"Message {number}")

    def point(self, actor: User) -> RestorePoint:
        """Take a restore point now."""
        order = orders.back_up_now(actor, server=self.server)
        wait(lambda: Order.objects.get(pk=order.pk).state == "done", seconds=PATIENCE)
        return RestorePoint.objects.get(identity=Order.objects.get(pk=order.pk).point)

    def redact(self) -> None:
        """Take one message back, after the restore point: a difference that is none of the backup's."""
        with self.client() as client:
            admin = self.person(client)
            event = next(each for each in admin.sync()["rooms"]["join"][self.room]["timeline"]["events"][::-1]
                         if each["type"] == "m.room.message")  # fmt: skip
            admin.ask("PUT", f"rooms/{self.room}/redact/{event['event_id']}/once", {})


@pytest.fixture
def living(
    server: Server,  # noqa: F811
    agent: LocalProvider,  # noqa: F811
    state: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> Living:
    """A server that Hearth made, with its engine, whose agent has an identity."""
    identities._tried.clear()
    monkeypatch.setitem(settings.HEARTH, "HEARTH_INTERNAL_PORT", free_ports(1)[0])
    monkeypatch.setattr(wiring, "SYNC_ON_THIS_MACHINE", 1.0)
    monkeypatch.setattr(comparing, "MARGIN", timedelta(0))
    store = Store.objects.create(code="here", name="Here", kind="folder", folder=str(tmp_path))
    (tmp_path / str(server.pk)).mkdir()
    RegionStores.objects.create(region=Region.objects.get(code="local"), first=store)
    Server.objects.filter(pk=server.pk).update(version=newest().version)
    return Living(Server.objects.get(pk=server.pk), agent, state)


def made(living: Living) -> None:
    """Have it made, and wait until its first restore point is whole."""
    operation = services.reconcile(living.server.pk)
    assert operation is not None
    engine.run(operation.pk)
    operation.refresh_from_db()
    assert operation.state == "succeeded", operation.error
    wait(lambda: RestorePoint.objects.filter(server=living.server).exists(), seconds=PATIENCE)


def ended(proof: Proof) -> Proof:
    """Take turns, as workers do, until it has ended."""
    end = time.monotonic() + PATIENCE
    while not proof.result:
        assert time.monotonic() < end, (proof.step, proof.evidence)
        Proof.objects.filter(pk=proof.pk).update(run_after=timezone.now())
        turns.run(proof.pk)
        proof.refresh_from_db()
        time.sleep(0.1)
    return proof


def prove(living: Living) -> Proof:
    proof = schedule.make(living.server, Proof.Kind.RECOVERY)
    assert proof is not None
    return ended(proof)


def nothing_is_left(living: Living) -> None:
    """Only the living server is on the machine, and nobody may open its keys."""
    assert set(living.agent.observe()) == {str(living.server.pk)}
    assert not UnwrapGrant.objects.filter(revoked_at=None).exists()


def test_a_server_is_proved_by_being_brought_back(
    living: Living, monkeypatch: pytest.MonkeyPatch, alice: User, tmp_path: Path
) -> None:
    with listening(monkeypatch):
        made(living)
        living.talk()
        point = living.point(alice)
        living.redact()
        a_worker_is_killed_and_another_brings_it_back(living, point)
        a_loss_is_noticed(living, monkeypatch)
        second = a_second_store(tmp_path)
        a_damaged_backup_fails(living, point, tmp_path)
        a_drill_brings_it_back_from_the_second_store_alone(living, alice, tmp_path, second)
        with living.client() as client:
            assert living.person(client).sync()["next_batch"], "the living server was never touched"


def a_worker_is_killed_and_another_brings_it_back(living: Living, point: RestorePoint) -> None:
    proof = schedule.make(living.server, Proof.Kind.RECOVERY)
    assert proof is not None
    kill_at("follow", "tests.backups.proofs.runner", str(proof.pk), str(living.state), "follow")
    proof.refresh_from_db()
    assert (proof.result, proof.step) == ("", "follow")
    Proof.objects.update(lease_until=timezone.now() - timedelta(seconds=1))
    proof = ended(proof)
    assert proof.result == "passed", (proof.summary, proof.evidence)
    assert (proof.point, proof.fence) == (point.identity, 2)
    compared = proof.evidence["compared"]
    assert (compared["living"], compared["room"]) == ("asked", living.room)
    assert compared["accounts_compared"] >= 2
    assert compared["events_compared"] >= 5
    assert proof.rto_seconds is not None
    assert proof.rpo_seconds is not None
    assert RestorePoint.objects.get(pk=point.pk).proved == proof.begun
    nothing_is_left(living)


def a_loss_is_noticed(living: Living, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server compared with itself lacks nothing. It does when the living one had more, or other things."""
    url = ServerStatus.objects.get(server=living.server).homeserver_url
    secret = str(ServerSecret.objects.get(server=living.server, name="jwt").value)

    def compared() -> list[str]:
        return comparing.compare(url, url, living.server.server_name, secret, timezone.now()).wrong

    assert compared() == []
    accounts, before = comparing.Side.accounts, comparing.Side.before

    def one_more(side: comparing.Side, until: datetime) -> set[str]:
        return accounts(side, until) | (set() if side._back else {"@dora:berry.hearth.localhost"})

    def others(side: comparing.Side, room: str, anchor: str, count: int) -> dict[str, dict[str, Any]]:
        found = before(side, room, anchor, count)
        if not side._back:
            said = next(each for each in found.values() if "body" in each["content"])
            said["content"] = {"body": "I never said that"}
            found["$gone"] = dict(said)
        return found

    monkeypatch.setattr(comparing.Side, "accounts", one_more)
    monkeypatch.setattr(comparing.Side, "before", others)
    lacks, missing, changed = compared()
    assert "@dora:berry.hearth.localhost" in lacks
    assert "are missing: 1 of" in missing
    assert "another content: 1" in changed
    monkeypatch.setattr(comparing.Side, "accounts", accounts)
    monkeypatch.setattr(comparing.Side, "before", before)


def a_damaged_backup_fails(living: Living, point: RestorePoint, root: Path) -> None:
    base = next((root / str(living.server.pk) / "points-of" / point.identity).glob("base*"))
    data = bytearray(base.read_bytes())
    data[len(data) // 2] ^= 1
    base.write_bytes(data)
    proof = prove(living)
    assert (proof.result, proof.evidence["code"]) == ("failed", "Damaged"), proof.summary
    assert proof.evidence["damaged_restore_points"] == [point.identity]
    assert RestorePoint.objects.get(pk=point.pk).state == "damaged"
    assert ServerBackups.objects.get().next_reading is not None
    alerts.observe()
    assert point.identity in Alarm.objects.get(cause="proof").text
    nothing_is_left(living)


def a_second_store(root: Path) -> Store:
    """Give the region a second store, and have everything copied to it by the clock's own way."""
    far = root.with_name(f"{root.name}-far")
    far.mkdir()
    stores = RegionStores.objects.get()
    stores.second = Store.objects.create(code="far", name="Far", kind="folder", folder=str(far))
    places.choose_stores(SYSTEM, chosen=stores)
    copies.make_missing()

    def complete() -> bool:
        Copy.objects.update(next_turn=timezone.now())
        copies.copy_some(time.monotonic() + PATIENCE, time.monotonic)
        return Copy.objects.get().complete

    wait(complete, seconds=PATIENCE)
    assert ServerBackups.objects.get().copied_until is not None
    assert not RestorePoint.objects.filter(copied=None).exists()
    return stores.second


def a_drill_brings_it_back_from_the_second_store_alone(living: Living, actor: User, first: Path, second: Store) -> None:
    RestorePoint.objects.update(state="whole")  # as the second store has it
    first.rename(first.with_name(f"{first.name}-lost"))
    region = Region.objects.get(code="local")
    drill = Drill(name="The first store is lost", region=region, target=region, planned=timezone.now())
    drills.plan(actor, drill=drill)
    drills.move_on()
    proof = ended(drill.proofs.get())
    assert proof.result == "passed", (proof.summary, proof.evidence)
    assert proof.store == second
    assert proof.evidence["compared"]["living"] == "not asked"
    assert proof.rto_seconds is not None
    assert proof.rto_seconds >= proof.evidence["own_seconds"]
    drills.move_on()
    drill.refresh_from_db()
    assert drill.result == "passed", drill.summary
    (row,) = pages.report(drill).rows
    assert (row.rto_met, row.rpo_met, row.store) == (True, True, "Far")
    nothing_is_left(living)
