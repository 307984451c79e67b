"""Once a week every byte of a restore point is read; what is damaged is named, with what it takes away and what not."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from django.utils import timezone

from accounts.models import User
from backups import alerts, expiring
from backups.models import Alarm, Proof, RestorePoint, Shelf, Store
from backups.proofs import ends, schedule, turns
from backups.proofs.leases import claim
from security.datakeys import grants
from security.models import UnwrapGrant
from tenants.models import Server
from tests.backups.control import real

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.xdist_group("proof_reading")]


@pytest.fixture(scope="module")
def backups() -> Iterator[real.Backups]:
    with real.made() as found:
        yield found


@pytest.fixture
def kept(backups: real.Backups, alice: User, tmp_path: Path) -> Path:
    """The server of those backups, and the folder they lie in."""
    return real.told(backups, real.server_of(alice), tmp_path / "disk")


@pytest.fixture
def server(kept: Path) -> Server:
    return Server.objects.get(pk=real.SERVER)


def read(server: Server) -> Proof:
    """Carry a full read out."""
    made = schedule.make(server, Proof.Kind.READING)
    assert made is not None
    turns.run(made.pk)
    return Proof.objects.get(pk=made.pk)


def alarms(server: Server) -> str:
    alerts.observe()
    return "\n".join(Alarm.objects.filter(server=server, cause="proof").values_list("text", flat=True))


def states() -> dict[str, str]:
    return dict(RestorePoint.objects.values_list("identity", "state"))


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_every_byte_is_read_under_a_grant_that_ends(server: Server, backups: real.Backups) -> None:
    proof = read(server)
    newest = backups.points[-1]
    assert (proof.result, proof.point) == ("passed", newest.id), proof.summary
    assert proof.evidence["objects"] >= 5
    assert proof.evidence["hashed"]
    assert proof.evidence["bytes"] > newest.base.size
    assert RestorePoint.objects.get(identity=newest.id).read is not None
    grant = UnwrapGrant.objects.get()
    assert (grant.source, grant.target, grant.holder) == (server.pk, server.pk, proof.pk)
    assert grant.revoked_at is not None
    assert grant.opened > 2
    assert alarms(server) == ""


def test_one_bit_is_found_and_what_it_hits_is_named(server: Server, backups: real.Backups, kept: Path) -> None:
    older, newest = backups.points
    flip(kept / newest.base.name)
    proof = read(server)
    assert proof.result == "failed"
    assert newest.base.name in proof.summary
    assert proof.evidence["damaged_restore_points"] == [newest.id]
    assert proof.evidence["sound_restore_points"] == [older.id]
    assert states() == {older.id: "whole", newest.id: "damaged"}
    assert newest.id in alarms(server)
    # A listing, which can't see into an object, does not take that back.
    shelf = Shelf.objects.create(server=server, store=Store.objects.get(code="disk"), next_turn=timezone.now())
    expiring.run(shelf.pk)
    assert states()[newest.id] == "damaged"


def test_the_newest_moments_are_missed_though_the_store_looks_whole(server: Server, kept: Path) -> None:
    for moment in (kept / "lines").glob("*/moments/*"):
        moment.unlink()
    proof = read(server)
    assert proof.result == "failed"
    assert "Moments 0 to" in str(proof.evidence["damage"])


def test_a_restore_comes_first(server: Server) -> None:
    holder = real.ORGANISATION
    grants.open_grant(
        "Alice", organisation=server.organisation_id, source=server.pk, target=server.pk,
        purpose=UnwrapGrant.Purpose.RESTORE, holder=holder, fence=1, reason="A restore",
    )  # fmt: skip
    made = schedule.make(server, Proof.Kind.READING)
    assert made is not None
    turns.run(made.pk)
    proof = Proof.objects.get()
    assert (proof.result, proof.grant, UnwrapGrant.objects.get().revoked_at) == ("", None, None)
    assert proof.run_after is not None
    assert proof.run_after > timezone.now() + timedelta(minutes=5)
    assert ends.give_way(server.pk, "a restore comes first") == 1
    assert ends.give_way(server.pk, "a restore comes first") == 0


def test_a_read_that_was_cut_off_is_done_again_by_the_next_worker(server: Server) -> None:
    made = schedule.make(server, Proof.Kind.READING)
    assert made is not None
    assert claim(made.pk) is not None  # and this worker is killed
    assert turns.run(made.pk) is None, "its lease holds for a while"
    assert Proof.objects.get().result == ""
    Proof.objects.update(lease_until=timezone.now() - timedelta(seconds=1))
    turns.run(made.pk)
    proof = Proof.objects.get()
    assert (proof.result, proof.fence) == ("passed", 2)
