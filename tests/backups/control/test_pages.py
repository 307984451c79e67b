"""The page of a server's backups: what it says, and who may see it and act."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import pytest
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from accounts.models import User
from backups import selectors
from backups.engine.manifest import Point
from backups.models import Line, Order, Policy, RestorePoint, ServerBackups
from tenants.models import Server
from tests.cast import client_for

pytestmark = pytest.mark.django_db
Points = Callable[..., Point]


@pytest.fixture
def address(server: Server) -> str:
    return reverse("server_backups", args=[server.organisation.slug, server.pk])


@pytest.fixture
def kept(server: Server) -> ServerBackups:
    """Backups as they are on a good day."""
    now = timezone.now()
    begun = now - timedelta(days=2)
    line = Line.objects.create(server=server, identity="20261120t000000z-00000000", begun=begun, until=now)
    RestorePoint.objects.create(
        server=server, identity="20261120t120000z-00000000", at=now, kind="daily", line=line.identity
    )
    return ServerBackups.objects.create(server=server, line=line.identity, begun=begun, until=now, reported=now)


def test_an_owner_sees_how_they_are_and_asks_for_a_point(address: str, kept: ServerBackups, alice: User) -> None:
    client = client_for(alice)
    page = client.get(address).content.decode()
    assert "Protected" in page
    assert "seconds of messages" in page
    assert client.post(f"{address}now/").status_code == 302
    assert Order.objects.get().reason == "manual"
    page = client.get(address).content.decode()
    assert "begins within a minute" in page
    assert "Take a restore point now" not in page


def test_a_member_looks_and_a_stranger_finds_nothing(
    address: str, kept: ServerBackups, bob: User, charlie: User
) -> None:
    member = client_for(bob)
    page = member.get(address)
    assert page.status_code == 200
    assert "Take a restore point now" not in page.content.decode()
    assert member.post(f"{address}now/").status_code == 403
    for answer in (client_for(charlie).get(address), client_for(charlie).post(f"{address}now/")):
        assert answer.status_code == 404
    assert Client().get(address).status_code == 302
    assert not Order.objects.exists()


def test_nothing_to_back_up_yet_is_said(address: str, server: Server, alice: User) -> None:
    client = client_for(alice)
    assert "None yet" in client.get(address).content.decode()
    client.post(f"{address}now/")
    assert not Order.objects.exists()


@pytest.mark.parametrize(
    ("changes", "label"),
    [
        ({"reported": None}, "Being set up"),
        ({"reported": timedelta(hours=-1)}, "Not heard from"),
        ({"fault_code": "StoreFull", "fault": "The store is full."}, "In trouble"),
        ({"until": timedelta(minutes=-20)}, "Behind"),
        ({}, "Protected"),
    ],
)
def test_the_worst_that_is_true_is_said(kept: ServerBackups, changes: dict[str, object], label: str) -> None:
    now = timezone.now()
    for name, value in changes.items():
        setattr(kept, name, now + value if isinstance(value, timedelta) else value)
    newest = RestorePoint.objects.get()
    assert selectors.state_of(kept, newest, Policy(), now).label == label


def test_an_old_or_damaged_point_is_said(kept: ServerBackups) -> None:
    now, newest = timezone.now(), RestorePoint.objects.get()
    assert selectors.state_of(kept, newest, Policy(), now + timedelta(minutes=1)).label == "Protected"
    newest.at = now - timedelta(hours=27)
    assert selectors.state_of(kept, newest, Policy(), now).label == "Late"
    newest.state, newest.damage = RestorePoint.State.DAMAGED, "media/x/000001 is missing."
    assert selectors.state_of(kept, newest, Policy(), now).tone == "bad"


def test_windows_end_where_the_policy_ends(server: Server, kept: ServerBackups) -> None:
    now = timezone.now()
    Line.objects.create(server=server, identity="20261101t000000z-00000000", begun=now - timedelta(days=20),
                        until=now - timedelta(days=5))  # fmt: skip
    Line.objects.create(server=server, identity="20261001t000000z-00000000", begun=now - timedelta(days=40),
                        until=now - timedelta(days=20))  # fmt: skip
    found = selectors.windows(server, Policy(window_days=7), now)
    assert [each.begun for each in found] == [kept.begun, now - timedelta(days=7)]
