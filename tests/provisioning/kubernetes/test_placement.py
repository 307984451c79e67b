"""A region is a cell: it holds so many servers and no more, whoever asks at the same time."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
from django.db import connection
from django.utils import timezone

from accounts.models import User
from provisioning import fleet
from provisioning.models import Region
from tenants.errors import Refused
from tenants.models import Membership, Organisation, Plan, Server, Subscription
from tenants.services import create_server

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def full_at_three(monkeypatch: pytest.MonkeyPatch, db: None) -> Region:
    """A region that is full with three servers."""
    monkeypatch.setattr(fleet, "CELL", 3)
    return fleet.seed_region()


def organisations(owner: User, number: int) -> list[Organisation]:
    plan = Plan.objects.create(
        code="p", name="P", servers=9, users=900, vcpu=99, memory_mb=99000, disk_gb=999, object_gb=9999
    )
    made = [Organisation.objects.create(name=f"O{each}", slug=f"o{each}") for each in range(number)]
    for each in made:
        Subscription.objects.create(organisation=each, plan=plan)
        Membership.objects.create(organisation=each, user=owner, role="owner")
    return made


def test_many_at_once_never_overshoot(full_at_three: Region, alice: User) -> None:
    results: list[str] = []
    barrier = threading.Barrier(8)

    def place(organisation: Organisation) -> None:
        try:
            barrier.wait(60)
            create_server(actor=alice, organisation=organisation, name=organisation.slug, region="local")
            results.append("made")
        except Refused as refusal:
            results.append(refusal.message)
        finally:
            connection.close()

    threads = [threading.Thread(target=place, args=[each]) for each in organisations(alice, 8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results.count("made") == Server.objects.count() == 3
    assert {each for each in results if each != "made"} == {
        "The region “This machine” is full: it holds 3 servers. No server was made. Choose another region."
    }


def test_one_that_is_gone_makes_room(
    full_at_three: Region, alice: User, organisation: Organisation, make_server: Callable[..., Server]
) -> None:
    servers = [make_server() for _ in range(3)]
    with pytest.raises(Refused, match="is full"):
        create_server(actor=alice, organisation=organisation, name="more", region="local")
    Server.objects.filter(pk=servers[0].pk).update(desired="deleted", deleted=timezone.now())
    create_server(actor=alice, organisation=organisation, name="more", region="local")


def test_a_cell_is_what_the_operator_is_measured_with() -> None:
    assert fleet.CELL == 5000
