"""The observer finds what is wrong by rows and clocks alone, and tells those who have to know once a day."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from django.db.models import F
from django.utils import timezone

from accounts.models import User
from backups import alerts, metrics
from backups.models import Alarm, Line, Policy, Proof, RegionStores, RestorePoint, ServerBackups, Shelf, Store
from notifications.models import Mail
from provisioning import fleet
from tenants.models import Server
from tests.cast import make_user

pytestmark = pytest.mark.django_db
LINE = "20261120t000000z-00000000"


@pytest.fixture
def sally(db: None) -> User:
    """Sally runs this Hearth."""
    return make_user("sally@example.org", staff=True)


@pytest.fixture
def well(server: Server, tmp_path: Path) -> ServerBackups:
    """A server two days old whose backups are as they should be."""
    now = timezone.now()
    store = Store.objects.create(code="disk", name="Disk", kind=Store.Kind.FOLDER, folder=str(tmp_path))
    RegionStores.objects.create(region=fleet.seed_region(), first=store)
    Server.objects.update(created=now - timedelta(days=2))
    Shelf.objects.create(server=server, store=store, next_turn=now + timedelta(hours=5), bytes_there=7)
    Line.objects.create(server=server, identity=LINE, begun=now - timedelta(days=2), until=now)
    RestorePoint.objects.create(server=server, identity=LINE, at=now - timedelta(hours=20), kind="daily", line=LINE)
    return ServerBackups.objects.create(server=server, reported=now, until=now, begun=now - timedelta(days=2))


def causes() -> set[str]:
    alerts.observe()
    return set(Alarm.objects.values_list("cause", flat=True))


def test_nothing_is_said_while_all_is_well(well: ServerBackups, sally: User) -> None:
    assert causes() == set()
    assert not Mail.objects.exists()


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"reported": timedelta(minutes=-20)}, "silent"),
        ({"until": timedelta(minutes=-20)}, "behind"),
        ({"fault_code": "StoreFull", "fault": "The store is full.", "fault_since": timedelta(minutes=-9)}, "fault"),
        ({"next_proof": timedelta(days=-2)}, "proof"),
        ({"next_reading": timedelta(days=-4)}, "proof"),
    ],
)
def test_what_a_servers_row_tells(well: ServerBackups, changes: dict[str, object], cause: str) -> None:
    now = timezone.now()
    told = {name: now + value if isinstance(value, timedelta) else value for name, value in changes.items()}
    ServerBackups.objects.update(**told)
    assert causes() == {cause}
    assert {tuple(labels): value for labels, value in metrics.alarms()}[(cause,)] == 1
    Server.objects.update(desired=Server.Desired.SUSPENDED)
    assert causes() == set(), "what does not run is not backed up further"


def test_an_engine_that_never_spoke(well: ServerBackups) -> None:
    ServerBackups.objects.all().delete()
    assert causes() == {"silent"}


def test_points_that_are_missing_late_or_damaged(well: ServerBackups) -> None:
    RestorePoint.objects.update(at=F("at") - timedelta(hours=7))
    assert causes() == {"late"}
    Policy.objects.create(server=well.server, every_hours=48)
    assert causes() == set(), "its own policy counts"
    RestorePoint.objects.update(state="damaged", damage="points/x/base is missing.")
    assert causes() == {"none", "damaged"}
    RestorePoint.objects.update(state="gone")
    assert causes() == {"none"}


def test_a_gap_is_told_for_a_day(well: ServerBackups) -> None:
    Line.objects.update(ended="SlotLost", until=timezone.now() - timedelta(hours=23))
    assert causes() == {"gap"}
    Line.objects.update(until=timezone.now() - timedelta(hours=25))
    assert causes() == set()


def test_the_second_store_falls_behind(well: ServerBackups, tmp_path: Path) -> None:
    second = Store.objects.create(code="far", name="Far", kind=Store.Kind.FOLDER, folder=str(tmp_path / "far"))
    RegionStores.objects.update(second=second)
    assert causes() == {"copy"}
    ServerBackups.objects.update(copied_until=F("until") - timedelta(minutes=30))
    assert causes() == set()
    ServerBackups.objects.update(copied_until=F("until") - timedelta(minutes=90))
    assert causes() == {"copy"}


@pytest.mark.parametrize("result", ["failed", "missed"])
def test_a_check_that_failed_or_was_missed(well: ServerBackups, result: str) -> None:
    Proof.objects.create(
        server=well.server, kind="reading", begun=timezone.now(), result=result, summary="Two objects."
    )
    assert causes() == {"proof"}
    assert "Two objects." in Alarm.objects.get().text
    Proof.objects.update(begun=timezone.now() - timedelta(days=6))
    assert causes() == {"proof"}, "it stays true until another one passes"
    Proof.objects.create(server=well.server, kind="recovery", begun=timezone.now(), result="passed")
    assert causes() == {"proof"}
    Proof.objects.create(server=well.server, kind="reading", begun=timezone.now(), result="passed")
    assert causes() == set()


def test_a_store_that_cannot_be_looked_through(well: ServerBackups) -> None:
    Shelf.objects.update(fault="The disk is not there.", fault_since=timezone.now() - timedelta(minutes=10))
    assert causes() == {"expiry"}
    Shelf.objects.update(fault="", fault_since=None, next_turn=timezone.now() - timedelta(hours=25))
    assert causes() == {"expiry"}, "no worker had time for it"


def test_mails_go_once_a_day_to_staff_and_to_owners_where_it_is_theirs(
    well: ServerBackups, sally: User, alice: User, bob: User, charlie: User
) -> None:
    ServerBackups.objects.update(until=timezone.now() - timedelta(minutes=20))
    for _ in range(2):
        alerts.observe()
    found = dict(Mail.objects.values_list("recipient", "subject"))
    assert Mail.objects.count() == 2
    assert found["sally@example.org"] == "Hearth: backups: Changes are not stored"
    assert found[alice.email] == f"Backups of {well.server.organisation}: Changes are not stored"
    text = Mail.objects.get(recipient=alice.email).text
    assert well.server.server_name in text
    assert f"/servers/{well.server.pk}/backups/" in text
    Mail.objects.update(created=timezone.now() - timedelta(hours=25))
    alerts.observe()
    assert Mail.objects.count() == 4


def test_owners_are_not_told_of_what_is_ours(well: ServerBackups, sally: User, alice: User) -> None:
    Shelf.objects.update(fault="The disk is not there.", fault_since=timezone.now() - timedelta(minutes=10))
    alerts.observe()
    assert [each.recipient for each in Mail.objects.all()] == [sally.email]


def test_an_alarm_keeps_its_time_and_tells_what_is_true_now(well: ServerBackups) -> None:
    ServerBackups.objects.update(until=timezone.now() - timedelta(minutes=20))
    alerts.observe()
    before = Alarm.objects.get()
    ServerBackups.objects.update(until=timezone.now() - timedelta(minutes=50))
    alerts.observe()
    after = Alarm.objects.get()
    assert (after.pk, after.since) == (before.pk, before.since)
    assert after.text != before.text


def test_figures(well: ServerBackups) -> None:
    assert list(metrics.stored()) == [(["disk"], 7)]
    ((_, seconds),) = metrics.rpo()
    assert 0 <= seconds < 600
    assert list(metrics.waiting()) == [(["disk"], 0)]
    assert list(metrics.copy_lag()) == [([], 0)]
