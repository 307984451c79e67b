"""Alice's organisation, with Bob as a member, and a region to put servers in."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from accounts.models import User
    from tenants.models import Organisation, Plan, Server

BASE = "hearth.test"


@pytest.fixture
def plans(db: None) -> dict[str, Plan]:
    """The seeded plans by code."""
    from tenants.models import Plan
    from tenants.seeds import seed_plans

    seed_plans()
    return {plan.code: plan for plan in Plan.objects.all()}


@dataclass
class Seams:
    """What the app heard after commits."""

    woken: list[uuid.UUID] = field(default_factory=list)


@pytest.fixture(autouse=True)
def seams_of_test() -> Iterator[Seams]:
    """One region, and a listener in place of the engine: these tests are about what is wanted, not about what runs."""
    from tenants import seams

    heard = Seams()
    regions, wake = list(seams._regions), list(seams._wake)
    seams._regions[:] = [lambda: [seams.RegionChoice("local", "This machine", BASE)]]
    seams._wake[:] = [heard.woken.append]
    yield heard
    seams._regions[:], seams._wake[:] = regions, wake


@pytest.fixture
def acme(alice: User, bob: User, plans: dict[str, Plan]) -> Organisation:
    """Alice owns it, Bob is a member; three servers fit."""
    from tenants import services
    from tenants.models import Membership

    organisation = services.create_organisation(actor=alice, name="Acme", plan=plans["hearth"])
    Membership.objects.create(organisation=organisation, user=bob, role=Membership.Role.MEMBER)
    return organisation


@pytest.fixture
def make_server(acme: Organisation, alice: User) -> Callable[[str], Server]:
    """Return a function that makes a server of Acme with a name."""
    from tenants import services

    def make(name: str = "chat") -> Server:
        return services.create_server(actor=alice, organisation=acme, name=name, region="local")

    return make
