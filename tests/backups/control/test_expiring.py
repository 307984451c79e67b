"""Each store is looked through: what is lost is named, what has expired goes, and nothing else ever does."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from io import StringIO
from pathlib import Path

import pytest
from django.core.management import call_command
from django.db.models import F
from django.utils import timezone

from audit.models import AuditEvent
from backups import expiring, shelves, tasks
from backups.engine import names
from backups.models import Policy, Proof, Restore, RestorePoint, ServerBackups, Shelf
from provisioning.models import Operation
from security.keyring.publish import database_time
from tenants.models import Server
from tests.backups.control.looks import Kept

pytestmark = pytest.mark.django_db
DAY = timedelta(days=1)


@pytest.fixture
def kept(server: Server, tmp_path: Path) -> Kept:
    """Five weeks of backups."""
    Policy.objects.create(window_days=7, retention_days=30)
    return Kept(server, tmp_path / "disk", 35)


def later(monkeypatch: pytest.MonkeyPatch, **time: float) -> datetime:
    """Let the database's clock be ahead."""
    at = timezone.now() + timedelta(**time)
    monkeypatch.setattr(expiring, "database_time", lambda: at)
    return at


def test_what_expired_goes_after_a_day_and_is_not_offered_before(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    before = kept.names()
    expiring.run(kept.shelf.pk)
    assert before <= kept.names(), "the first phase removes nothing"
    states = kept.states()
    old = {each.id for each in kept.history.points if timezone.now() - each.at > 30 * DAY}
    assert {key for key, state in states.items() if state == "gone"} == old
    assert len(old) > 3
    shelf = Shelf.objects.get()
    assert (shelf.fault, shelf.removed) == ("", None)
    assert shelf.bytes_waiting > 0
    later(monkeypatch, days=1, minutes=1)
    expiring.run(kept.shelf.pk)
    left = kept.names()
    assert not {names.point(each) for each in old} & left
    assert {names.point(key) for key, state in kept.states().items() if state == "whole"} <= left
    assert len(left) < len(before)
    assert Shelf.objects.get().removed is not None
    assert [each.result for each in Proof.objects.all()] == ["passed", "passed"]


def test_a_longer_policy_takes_back_what_has_not_gone(kept: Kept) -> None:
    expiring.run(kept.shelf.pk)
    assert "gone" in kept.states().values()
    Policy.objects.update(retention_days=60)
    expiring.run(kept.shelf.pk)
    assert set(kept.states().values()) == {"whole"}


def test_a_dry_run_changes_nothing(kept: Kept) -> None:
    before, rows = kept.names(), kept.states()
    out = StringIO()
    call_command("backups", "expire", "--dry-run", stdout=out)
    assert (kept.names(), kept.states(), Proof.objects.count()) == (before, rows, 0)
    assert "would" in out.getvalue()
    assert kept.server.server_name in out.getvalue()


def test_a_lost_object_damages_the_points_that_need_it(kept: Kept) -> None:
    victim = kept.history.points[-3]
    (kept.folder / victim.base.name).unlink()
    expiring.run(kept.shelf.pk)
    row = RestorePoint.objects.get(identity=victim.id)
    assert row.state == "damaged"
    assert victim.base.name in row.damage
    proof = Proof.objects.get()
    assert (proof.kind, proof.result) == ("listing", "failed")
    assert proof.evidence["damaged_restore_points"] == [victim.id]
    assert kept.states()[kept.history.points[-1].id] == "whole"


def test_nothing_is_removed_while_points_are_missing(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    expiring.run(kept.shelf.pk)
    later(monkeypatch, days=1, minutes=1)
    lost = kept.history.points[-1]
    manifest = kept.folder / names.point(lost.id)
    aside = manifest.with_name("aside")
    manifest.rename(kept.folder.parent / aside.name)
    before = kept.names()
    expiring.run(kept.shelf.pk)
    assert kept.names() == before
    assert "Nothing was removed" in Shelf.objects.get().fault
    assert kept.states()[lost.id] == "damaged"
    (kept.folder.parent / aside.name).rename(manifest)
    expiring.run(kept.shelf.pk)
    assert kept.states()[lost.id] == "whole", "it came back"
    assert Shelf.objects.get().fault == ""


def test_a_disk_that_is_not_mounted_is_a_fault_and_no_loss(kept: Kept) -> None:
    rows = kept.states()
    kept.folder.rename(kept.folder.with_name("away"))
    for make in (False, True):
        if make:
            kept.folder.mkdir()
        expiring.run(kept.shelf.pk)
        shelf = Shelf.objects.get()
        assert shelf.fault
        assert shelf.fault_since is not None
        assert kept.states() == rows
        assert not Proof.objects.exists()
    assert shelf.next_turn is not None
    assert shelf.next_turn < timezone.now() + timedelta(hours=2)


def test_nothing_is_removed_while_somebody_restores(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    expiring.run(kept.shelf.pk)
    later(monkeypatch, days=1, minutes=1)
    operation = Operation.objects.create(server=kept.server, kind="restore", generation=1, run_after=timezone.now())
    Restore.objects.create(operation=operation, source=kept.server, store=kept.store, mode="beside")
    before = kept.names()
    expiring.run(kept.shelf.pk)
    assert kept.names() == before
    Operation.objects.update(state="succeeded", finished=timezone.now())
    expiring.run(kept.shelf.pk)
    assert len(kept.names()) < len(before)


def test_nothing_is_removed_while_backups_are_tried_out(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    expiring.run(kept.shelf.pk)
    later(monkeypatch, days=1, minutes=1)
    proof = Proof.objects.create(server=kept.server, kind="recovery", step="follow", begun=timezone.now())
    before = kept.names()
    expiring.run(kept.shelf.pk)
    assert kept.names() == before
    assert Shelf.objects.get().fault == "", "that is nobody's fault"
    Proof.objects.filter(pk=proof.pk).update(result="passed")
    expiring.run(kept.shelf.pk)
    assert len(kept.names()) < len(before)


def test_a_deleted_servers_backups_go_when_the_final_one_has_outlived_it(
    kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    Server.objects.update(deleted=timezone.now())
    later(monkeypatch, days=29)
    expiring.run(kept.shelf.pk)
    assert kept.names()
    RestorePoint.objects.update(keep_until=timezone.now() + 40 * DAY, state="whole")
    later(monkeypatch, days=31)
    assert not expiring.is_over(Server.objects.get(), database_time()), "something was promised for longer"
    RestorePoint.objects.update(keep_until=timezone.now())
    later(monkeypatch, days=41)
    expiring.run(kept.shelf.pk)
    assert kept.names() == set()
    assert set(kept.states().values()) == {"gone"}
    assert Shelf.objects.get().next_turn is None
    assert AuditEvent.objects.filter(verb="backups.expired").count() == 1


def test_nothing_of_a_server_goes_that_came_back_meanwhile(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    Server.objects.update(deleted=timezone.now())
    RestorePoint.objects.update(keep_until=timezone.now())
    later(monkeypatch, days=41)
    shelf = Shelf.objects.select_related("server", "store").get()  # as a worker read it
    Server.objects.update(deleted=None)
    before, rows = kept.names(), kept.states()
    assert expiring.turn(shelf).held
    assert (kept.names(), kept.states()) == (before, rows)


def test_a_turn_is_claimed_once_and_a_new_point_brings_it_forward(kept: Kept) -> None:
    assert shelves.claim_due() == [kept.shelf.pk]
    assert shelves.claim_due() == []
    shelves.look_soon(kept.server.pk)
    assert shelves.claim_due() == [kept.shelf.pk]


def test_servers_get_their_shelves(kept: Kept, make_server: Callable[[str], Server]) -> None:
    other = make_server("other")
    assert shelves.make_missing() == 0, "its engine has not written anything yet"
    ServerBackups.objects.create(server=other, reported=timezone.now())
    assert (shelves.make_missing(), shelves.make_missing()) == (1, 0)
    tasks.look_due()


def test_evidence_is_kept_for_thirteen_months(kept: Kept) -> None:
    expiring.run(kept.shelf.pk)
    tasks.observe()
    assert Proof.objects.count() == 1
    Proof.objects.update(begun=F("begun") - timedelta(days=400))
    tasks.observe()
    assert Proof.objects.count() == 0
