"""Organisations and their plan."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
from pytest_django import DjangoAssertNumQueries

from accounts.models import User
from audit.models import AuditEvent
from tenants import limits, services
from tenants.errors import Refused
from tenants.models import Membership, Organisation, Plan, Server
from tenants.seeds import seed_plans
from tenants.services import organisations
from tests.together import at_once

pytestmark = pytest.mark.django_db


def test_it_works(alice: User, plans: dict[str, Plan]) -> None:

    organisation = services.create_organisation(actor=alice, name="  Bäckerei   Müller ", plan=plans["ember"])
    assert (organisation.name, organisation.slug) == ("Bäckerei Müller", "backerei-muller")
    assert organisation.memberships.get().role == "owner"
    assert organisation.subscription.plan == plans["ember"]
    event = AuditEvent.objects.get(verb="organisation.create")
    assert event.after == {"name": "Bäckerei Müller", "slug": "backerei-muller", "plan": "ember"}


@pytest.mark.parametrize("name", ["Acme", "ACME!", "東京", "x" * 80])
def test_every_name_gets_an_address_of_its_own(
    alice: User, bob: User, charlie: User, plans: dict[str, Plan], name: str
) -> None:
    everybody = (alice, bob, charlie)
    made = [services.create_organisation(actor=person, name=name, plan=plans["ember"]) for person in everybody]
    slugs = {organisation.slug for organisation in made}
    assert len(slugs) == 3
    assert all(0 < len(slug) <= 40 for slug in slugs)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [("", "Give the organisation a name"), (" \n", "Give the"), ("x" * 81, "81 characters"), ("!?", "letter or digit"),
     ("Ac\u202eme", "invisible"), ("A\u200bcme", "invisible"), ("Win at https://evil.example", "web address"),
     ("WWW.evil.example", "web address"), ("evil.example/win", "web address"), ("x" * 1_000_000, "characters")],
)  # fmt: skip
def test_a_name_is_refused(alice: User, plans: dict[str, Plan], name: str, sentence: str) -> None:

    with pytest.raises(Refused, match=sentence) as refused:
        services.create_organisation(actor=alice, name=name, plan=plans["ember"])
    assert refused.value.field == "name"
    assert not Organisation.objects.exists()


def test_a_plan_that_is_no_longer_offered_is_refused(alice: User, plans: dict[str, Plan], acme: Organisation) -> None:
    plans["beacon"].offered = False
    plans["beacon"].save()
    with pytest.raises(Refused, match="no longer offered"):
        services.create_organisation(actor=alice, name="Late", plan=plans["beacon"])
    with pytest.raises(Refused, match="no longer offered"):
        services.choose_plan(actor=alice, organisation=acme, plan=plans["beacon"])


def test_a_plan_can_be_changed_later(alice: User, plans: dict[str, Plan], acme: Organisation) -> None:

    services.choose_plan(actor=alice, organisation=acme, plan=plans["beacon"])
    acme.subscription.refresh_from_db()
    assert acme.subscription.plan == plans["beacon"]
    event = AuditEvent.objects.get(verb="subscription.change")
    assert (event.before, event.after) == ({"plan": "hearth"}, {"plan": "beacon"})
    with pytest.raises(Refused, match="already your plan"):
        services.choose_plan(actor=alice, organisation=acme, plan=plans["beacon"])


def test_a_plan_smaller_than_what_is_used_is_refused(
    alice: User, plans: dict[str, Plan], acme: Organisation, make_server: Callable[[str], Server]
) -> None:
    make_server("one")
    make_server("two")
    with pytest.raises(Refused, match=r"servers 2 of 1, .*memory 8 of 4 GB.*nothing was stopped"):
        services.choose_plan(actor=alice, organisation=acme, plan=plans["ember"])
    acme.subscription.refresh_from_db()
    assert acme.subscription.plan == plans["hearth"]


def test_seeds_are_planted_once_and_staff_may_change_them(plans: dict[str, Plan]) -> None:

    Plan.objects.filter(code="ember").update(users=75)
    seed_plans()
    assert Plan.objects.count() == 3
    assert Plan.objects.get(code="ember").users == 75


def test_usage_is_one_query(
    acme: Organisation, make_server: Callable[[str], Server], django_assert_num_queries: DjangoAssertNumQueries
) -> None:
    make_server("one")
    with django_assert_num_queries(1):
        used = limits.in_use(acme)
    assert used == limits.Usage(servers=1, users=166, vcpu=2, memory_mb=4096, disk_gb=20, object_gb=100)


@pytest.mark.django_db(transaction=True)
def test_two_people_with_one_name_at_once_have_two_organisations(
    alice: User, bob: User, plans: dict[str, Plan]
) -> None:
    create = partial(services.create_organisation, name="Acme", plan=plans["ember"])
    at_once([partial(create, actor=alice), partial(create, actor=bob)])
    assert Organisation.objects.filter(name="Acme").count() == 2
    assert Organisation.objects.filter(slug="acme").count() == 1


@pytest.mark.django_db(transaction=True)
def test_a_form_sent_three_times_at_once_makes_one_organisation(alice: User, plans: dict[str, Plan]) -> None:
    create = partial(services.create_organisation, actor=alice, name="Acme", plan=plans["ember"])
    outcomes = at_once([create, create, create])
    refused = [outcome.message for outcome in outcomes if isinstance(outcome, Refused)]
    assert len(refused) == 2
    assert "You own an organisation called “Acme” already. No other was made." in refused[0]
    assert Organisation.objects.count() == 1


def test_one_person_owns_so_many_and_no_more(
    alice: User, bob: User, plans: dict[str, Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(organisations, "MAX_OWNED", 2)
    theirs = services.create_organisation(actor=bob, name="Bob", plan=plans["ember"])
    Membership.objects.create(organisation=theirs, user=alice, role="member")
    for name in ("One", "Two"):
        services.create_organisation(actor=alice, name=name, plan=plans["ember"])
    with pytest.raises(Refused, match=r"You own 2 organisations.*None was made"):
        services.create_organisation(actor=alice, name="Three", plan=plans["ember"])
    assert Organisation.objects.count() == 3


@pytest.mark.django_db(transaction=True)
def test_a_smaller_plan_and_a_new_server_take_turns(
    alice: User, plans: dict[str, Plan], acme: Organisation, make_server: Callable[[str], Server]
) -> None:
    make_server("one")
    outcomes = at_once(
        [
            partial(services.choose_plan, actor=alice, organisation=acme, plan=plans["ember"]),
            partial(services.create_server, actor=alice, organisation=acme, name="two", region="local"),
        ]
    )
    assert len([outcome for outcome in outcomes if isinstance(outcome, Refused)]) == 1
    acme.subscription.refresh_from_db()
    assert acme.servers.count() <= acme.subscription.plan.servers
