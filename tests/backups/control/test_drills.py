"""Drills: a region is taken as lost, and its servers come back in the order that people pay for, or that is shown."""

from __future__ import annotations

import csv
import io
import json
from datetime import timedelta
from pathlib import Path

import pytest
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from accounts.models import User
from backups.models import Drill, Proof, RegionStores, RestorePoint, ServerBackups, Store
from backups.proofs import drills, pages, recovery, room, schedule
from provisioning.fleet import seed_region
from provisioning.models import Region
from tenants.errors import Refused
from tenants.models import Organisation, Plan, Server, Subscription
from tests.backups.control.test_admin import staff  # noqa: F401 (a fixture)

pytestmark = pytest.mark.django_db


@pytest.fixture
def region(tmp_path: Path) -> Region:
    """The machine's region with two stores."""
    found = seed_region()
    first, second = (
        Store.objects.create(code=name, name=name.title(), kind="folder", folder=str(tmp_path / name))
        for name in ("near", "far")
    )
    RegionStores.objects.create(region=found, first=first, second=second)
    return found


def customer(name: str, price: int, *, size: int = 1) -> Server:
    """A server of an organisation on a plan of that price, with a restore point in both stores."""
    plan, _ = Plan.objects.get_or_create(
        code=f"p{price}",
        defaults={"name": f"Plan {price}", "price_minor": price, "servers": 9, "users": 9, "vcpu": 9,
                  "memory_mb": 9, "disk_gb": 9, "object_gb": 9},
    )  # fmt: skip
    organisation = Organisation.objects.create(name=name, slug=name)
    Subscription.objects.create(organisation=organisation, plan=plan)
    server = Server.objects.create(
        organisation=organisation, name=name, server_name=f"{name}.hearth.test", region="local", version="1", users=1
    )
    now = timezone.now()
    ServerBackups.objects.create(server=server, stored_bytes=size, copied_until=now)
    RestorePoint.objects.create(
        server=server, identity="20261120t000000z-00000000", at=now, kind="daily", line="l", copied=now
    )
    return server


def planned(region: Region, actor: object, *servers: Server, **changes: object) -> Drill:
    values = {"name": "Region lost", "region": region, "target": region, "planned": timezone.now()} | changes
    return drills.plan(actor, drill=Drill(**values), servers=servers)


def end(server: Server, result: str = "passed", rto: float | None = 60.0, rpo: float | None = 5.0) -> None:
    Proof.objects.filter(server=server, result="").update(
        result=result, ended=timezone.now(), rto_seconds=rto, rpo_seconds=rpo, summary="It was tried."
    )


def test_whoever_pays_more_comes_first_and_the_second_store_is_used(region: Region, alice: User) -> None:
    little, large = customer("little", 500), customer("large", 5000, size=9)
    small = customer("small", 5000)
    drill = planned(region, alice)
    assert drills.move_on() == 1
    rows = list(drill.proofs.order_by("place").select_related("store"))
    assert [row.server for row in rows] == [small, large, little]
    assert {row.store.code for row in rows if row.store} == {"far"}
    assert {row.region for row in rows} == {region}
    assert drills.move_on() == 0, "it is running"


def test_one_that_meets_its_goals_passes(region: Region, alice: User) -> None:
    one, two = customer("one", 1), customer("two", 2)
    drill = planned(region, alice)
    drills.move_on()
    end(one)
    assert drills.move_on() == 0
    end(two)
    assert drills.move_on() == 1
    drill.refresh_from_db()
    assert (drill.result, drill.summary) == ("passed", "All 2 servers came back within the goals.")


@pytest.mark.parametrize(
    "ended", [{"rto": 4 * 3600 + 1.0}, {"rpo": 901.0}, {"result": "failed"}, {"result": "missed", "rto": None}]
)
def test_one_server_that_misses_a_goal_fails_it(region: Region, alice: User, ended: dict[str, object]) -> None:
    one, two = customer("one", 1), customer("two", 2)
    drill = planned(region, alice)
    drills.move_on()
    end(one)
    end(two, **ended)  # type: ignore[arg-type]
    drills.move_on()
    drill.refresh_from_db()
    assert (drill.result, drill.summary) == ("failed", "Of 2 servers 1 did not come back within the goals.")


def test_its_own_limit_counts_and_waiting_is_part_of_the_clock(region: Region, alice: User) -> None:
    for number in range(3):
        customer(f"s{number}", number)
    drill = planned(region, alice, at_once=2)
    drills.move_on()
    drill.refresh_from_db()
    assert drill.begun is not None
    assert schedule.due_now() == list(drill.proofs.order_by("place").values_list("pk", flat=True)[:2])
    for proof in drill.proofs.order_by("place")[:2]:
        assert room.has_room(region, drill)
        Proof.objects.filter(pk=proof.pk).update(
            instance=proof.pk, step="follow", run_after=timezone.now() + timedelta(hours=1)
        )
    assert not room.has_room(region, drill)
    assert schedule.due_now() == []
    Proof.objects.filter(place=0).update(removed=timezone.now(), result="passed")
    assert schedule.due_now() == [drill.proofs.get(place=2).pk]
    lost = drill.begun - timedelta(minutes=3)
    assert recovery.lost_seconds(drill, lost, timezone.now() + timedelta(hours=1)) == 180.0


def test_a_drill_comes_before_a_servers_own_test(region: Region, alice: User) -> None:
    one = customer("one", 1)
    own = schedule.make(one, Proof.Kind.RECOVERY)
    drill = planned(region, alice)
    drills.move_on()
    assert own is not None
    own.refresh_from_db()
    assert own.result == "missed"
    assert drill.proofs.get().server == one


def test_one_that_nobody_began_has_not_taken_place(region: Region, alice: User) -> None:
    customer("one", 1)
    drill = planned(region, alice, repeat_days=30)
    Drill.objects.update(planned=timezone.now() - timedelta(days=2))
    drills.move_on()
    drill.refresh_from_db()
    assert (drill.result, drill.begun) == ("missed", None)
    assert not Proof.objects.exists()
    following = Drill.objects.get(result="")
    assert following.planned > timezone.now() + timedelta(days=29)


def test_one_that_is_broken_off_has_failed(region: Region, alice: User) -> None:
    one, two = customer("one", 1), customer("two", 2)
    drill = planned(region, alice)
    drills.move_on()
    end(two)
    drills.break_off(alice, drill=drill)
    drills.move_on()
    drill.refresh_from_db()
    assert (drill.result, drill.summary) == ("failed", f"It was broken off by {alice}.")
    cut = Proof.objects.get(server=one)
    assert (cut.result, cut.summary) == ("missed", "The drill was broken off."), "its owner reads this"
    assert Proof.objects.get(server=two).result == "passed"
    with pytest.raises(Refused, match="ended already"):
        drills.break_off(alice, drill=drill)


def test_one_is_called_off_before_its_time(region: Region, alice: User) -> None:
    customer("one", 1)
    drill = planned(region, alice, planned=timezone.now() + timedelta(days=1))
    assert drills.move_on() == 0
    drills.break_off(alice, drill=drill)
    drills.move_on()
    drill.refresh_from_db()
    assert (drill.result, drill.begun) == ("missed", None)


def test_a_region_without_anything_to_bring_back_fails(region: Region, alice: User) -> None:
    drill = planned(region, alice)
    drills.move_on()
    drill.refresh_from_db()
    assert drill.result == "failed"


def test_the_report_says_what_met_the_goals(region: Region, alice: User) -> None:
    one, two = customer("one", 1), customer("=two", 2)
    drill = planned(region, alice)
    drills.move_on()
    end(one, rto=5 * 3600.0)
    end(two, result="missed", rto=None, rpo=None)
    drills.move_on()
    drill.refresh_from_db()
    told = json.loads(pages.report(drill).json())
    assert told["counts"] == {"servers": 2, "ended": 2, "back": 1, "rto_met": 0, "rpo_met": 1, "missed": 1}
    assert told["worst"] == {"rto_seconds": 5 * 3600.0, "rpo_seconds": 5.0}
    assert [each["server"] for each in told["servers"]] == [two.server_name, one.server_name]
    table = list(csv.DictReader(io.StringIO(pages.report(drill).csv())))
    assert [(row["rto_met"], row["rpo_met"]) for row in table] == [("False", "False"), ("False", "True")]
    assert table[0]["organisation"] == "'=two", "no formula for whoever opens it"


def test_staff_plan_one_look_at_it_and_take_the_report(region: Region, staff: Client) -> None:  # noqa: F811
    one = customer("one", 1)
    said = {
        "name": "Winter", "region": region.pk, "target": region.pk, "repeat_days": 90, "at_once": 2,
        "rto_goal": 14400, "rpo_goal": 900,
    }  # fmt: skip
    when = timezone.now() + timedelta(minutes=1)
    answer = staff.post(
        reverse("admin:backups_drill_add"), said | {"planned_0": f"{when:%Y-%m-%d}", "planned_1": f"{when:%H:%M:%S}"}
    )
    assert answer.status_code == 302, answer.context["adminform"].form.errors
    drill = Drill.objects.get()
    Drill.objects.update(planned=timezone.now())
    drills.move_on()
    end(one)
    drills.move_on()
    page = staff.get(reverse("admin:backups_drill_change", args=[drill.pk])).content.decode()
    assert "1 of 1 servers back" in page
    assert one.server_name in page
    for form, kind in (("json", "application/json"), ("csv", "text/csv")):
        answer = staff.get(reverse("admin:backups_drill_export", args=[drill.pk, form]))
        assert answer["Content-Type"].startswith(kind)
        assert one.server_name in answer.content.decode()
    assert staff.get(reverse("admin:backups_drill_export", args=[drill.pk, "exe"])).status_code == 404
    assert staff.get(reverse("admin:backups_drill_changelist")).status_code == 200
    assert staff.get(reverse("admin:backups_proof_changelist")).status_code == 200
    assert staff.get(reverse("admin:backups_proof_change", args=[drill.proofs.get().pk])).status_code == 200


def test_one_that_cant_be_is_refused(region: Region, alice: User) -> None:
    with pytest.raises(Refused, match="has passed"):
        planned(region, alice, planned=timezone.now() - timedelta(days=1))
    RegionStores.objects.all().delete()
    with pytest.raises(Refused, match="no store"):
        planned(region, alice)
