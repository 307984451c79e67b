"""Engines report, and are told what to do."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import pytest
from django.utils import timezone

from accounts.models import User
from backups import orders, sync
from backups.engine.hearth import Fault, LineReport, OrderReport, PointReport, Report
from backups.engine.manifest import Point
from backups.models import Line, Order, RestorePoint, ServerBackups
from tenants.models import Server
from tests.backups.control.conftest import NOON

pytestmark = pytest.mark.django_db
Points = Callable[..., Point]


def test_a_point_is_written_down_once_and_acknowledged_each_time(server: Server, point: Points) -> None:

    manifest = point(server)
    report = Report(at=NOON, points=(PointReport(manifest=manifest, seconds=3.0, stored_bytes=10, listed=True),))
    for _ in range(2):
        assert sync.take(server.pk, report).known == (manifest.id,)
    row = RestorePoint.objects.get()
    assert (row.identity, row.at, row.state) == (manifest.id, NOON, "whole")
    assert row.listed is not None
    assert row.keep_until == NOON + timedelta(days=30)


def test_a_point_that_lacks_objects_is_damaged(server: Server, point: Points) -> None:

    told = PointReport(manifest=point(server), seconds=3.0, stored_bytes=10, damage="media/x/000001 is missing.")
    sync.take(server.pk, Report(at=NOON, points=(told,)))
    row = RestorePoint.objects.get()
    assert (row.state, row.damage, row.listed) == ("damaged", "media/x/000001 is missing.", None)


def test_nobody_reports_for_another_server(make_server: Callable[[str], Server], point: Points) -> None:

    mine, other = make_server("chat"), make_server("other")
    told = PointReport(manifest=point(other), seconds=1.0, stored_bytes=1)
    with pytest.raises(sync.ForeignReport):
        sync.take(mine.pk, Report(at=NOON, points=(told,)))
    assert not RestorePoint.objects.exists()


def test_a_late_report_moves_nothing_back(server: Server) -> None:

    later, earlier = NOON + timedelta(minutes=5), NOON
    for until in (later, earlier):
        line = LineReport(id="20261120t000000z-00000000", begun=NOON - timedelta(days=1), until=until)
        sync.take(server.pk, Report(at=until, lines=(line,), media_until=until))
    row = ServerBackups.objects.get(server=server)
    assert (row.until, row.media_until, Line.objects.get().until) == (later, later, later)


def test_an_order_stays_until_it_is_answered(server: Server, alice: User) -> None:

    empty = Report(at=NOON)
    sync.take(server.pk, empty)
    order = orders.back_up_now(alice, server=server)
    assert orders.back_up_now(alice, server=server) == order
    for _ in range(2):
        assert [each.id for each in sync.take(server.pk, empty).orders] == [order.pk]
    taken = OrderReport(id=order.pk, state="taken", done_bytes=5, total_bytes=10)
    assert [each.id for each in sync.take(server.pk, Report(at=NOON, orders=(taken,))).orders] == [order.pk]
    done = OrderReport(id=order.pk, state="done", point="20261120t120000z-00000000")
    assert sync.take(server.pk, Report(at=NOON, orders=(done,))).orders == ()
    late = OrderReport(id=order.pk, state="failed", error="late")
    sync.take(server.pk, Report(at=NOON, orders=(late,)))
    assert Order.objects.get().state == "done"


def test_an_order_of_another_server_is_not_touched(make_server: Callable[[str], Server]) -> None:

    mine, other = make_server("chat"), make_server("other")
    order = orders.place(other, "backup", "daily")
    done = OrderReport(id=order.pk, state="done")
    assert sync.take(mine.pk, Report(at=NOON, orders=(done,))).orders == ()
    assert Order.objects.get().state == "waiting"


def test_a_fault_comes_and_goes(server: Server) -> None:

    fault = Fault(code="StoreFull", text="The store is full.", since=NOON)
    sync.take(server.pk, Report(at=NOON, fault=fault))
    assert ServerBackups.objects.get().fault_code == "StoreFull"
    sync.take(server.pk, Report(at=NOON))
    assert (ServerBackups.objects.get().fault_code, ServerBackups.objects.get().fault_since) == ("", None)


def test_a_deleted_server_is_told_so(server: Server) -> None:

    Server.objects.filter(pk=server.pk).update(deleted=timezone.now())
    with pytest.raises(Server.DoesNotExist):
        sync.take(server.pk, Report(at=NOON))
