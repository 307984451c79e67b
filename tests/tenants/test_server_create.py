"""Create a server: what is refused, and that two at once can't take more than the plan has."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
from django.utils import timezone
from pytest_django import DjangoCaptureOnCommitCallbacks

from accounts.models import User
from audit.models import AuditEvent
from tenants import limits, releases, services
from tenants.errors import Refused
from tenants.models import Organisation, Plan, Server
from tests.tenants.conftest import Seams
from tests.together import at_once

pytestmark = pytest.mark.django_db


def test_it_works(
    acme: Organisation,
    alice: User,
    make_server: Callable[[str], Server],
    seams_of_test: Seams,
    django_capture_on_commit_callbacks: DjangoCaptureOnCommitCallbacks,
) -> None:

    with django_capture_on_commit_callbacks(execute=True):
        server = make_server("chat")
    assert server.server_name == "chat.hearth.test"
    assert (server.vcpu, server.memory_mb, server.disk_gb, server.object_gb) == (2, 4096, 20, 100)
    assert server.users == 500 // 3
    assert server.version == releases.newest().version
    assert (server.desired, server.generation) == ("running", 1)
    assert seams_of_test.woken == [server.pk]
    event = AuditEvent.objects.get(verb="server.create")
    assert (event.actor_id, event.object_id, event.organisation_id) == (alice.pk, str(server.pk), acme.pk)


def test_a_name_is_taken_in_any_organisation(
    make_server: Callable[[str], Server], charlie: User, plans: dict[str, Plan]
) -> None:

    make_server("chat")
    other = services.create_organisation(actor=charlie, name="Other", plan=plans["ember"])
    with pytest.raises(Refused, match=r"“chat\.hearth\.test” is taken") as refused:
        services.create_server(actor=charlie, organisation=other, name="chat", region="local")
    assert refused.value.field == "name"
    assert other.servers.count() == 0


def test_the_name_of_a_removed_server_stays_with_its_organisation(
    make_server: Callable[[str], Server], charlie: User, plans: dict[str, Plan]
) -> None:
    server = make_server("chat")
    server.deleted = timezone.now()
    server.save()
    other = services.create_organisation(actor=charlie, name="Other", plan=plans["ember"])
    with pytest.raises(Refused, match="is taken"):
        services.create_server(actor=charlie, organisation=other, name="chat", region="local")
    assert make_server("chat").server_name == server.server_name


@pytest.mark.parametrize(
    ("change", "field", "sentence"),
    [
        ({"name": "Chat"}, "name", "lower case"),
        ({"name": "admin"}, "name", "kept free"),
        ({"name": ""}, "name", "Give the server a name"),
        ({"region": "moon"}, "region", "takes no new servers"),
        ({"domain": "example.org"}, "domain", "not on a domain that you have proved"),
        ({"domain": "not a domain"}, "domain", "only one part"),
        ({"users": 0}, "users", "from 1 to 500"),
        ({"users": 501}, "users", "500 users left"),
    ],
)
def test_it_is_refused_and_nothing_is_made(
    acme: Organisation, alice: User, change: dict[str, object], field: str, sentence: str
) -> None:

    wanted = {"name": "chat", "region": "local"} | change
    with pytest.raises(Refused, match=sentence) as refused:
        services.create_server(actor=alice, organisation=acme, **wanted)  # type: ignore[arg-type]
    assert refused.value.field == field
    assert acme.servers.count() == 0
    assert not AuditEvent.objects.filter(verb="server.create").exists()


def test_the_plan_holds(make_server: Callable[[str], Server], acme: Organisation) -> None:
    for name in ("one", "two", "three"):
        make_server(name)
    with pytest.raises(Refused, match="allows 3 servers, and all are in use"):
        make_server("four")
    assert acme.servers.count() == 3


def test_an_organisation_without_a_plan_is_told_to_choose_one(
    make_server: Callable[[str], Server], acme: Organisation
) -> None:
    acme.subscription.delete()
    with pytest.raises(Refused, match="Choose a plan first"):
        make_server("chat")


def test_every_limit_is_held_by_itself(acme: Organisation, plans: dict[str, Plan]) -> None:

    plan = plans["hearth"]
    fits = limits.Usage(servers=2, users=499, vcpu=6, memory_mb=12288, disk_gb=100, object_gb=400)
    limits.check_room(plan, fits)
    for key, used, label in [
        ("users", 500, "users"), ("vcpu", 7, "processors"), ("memory_mb", 12289, "memory"), ("disk_gb", 101, "disk"),
        ("object_gb", 401, "object storage"),
    ]:  # fmt: skip
        with pytest.raises(Refused, match=label):
            limits.check_room(plan, limits.Usage(**{key: used}))


def test_the_smallest_plan_has_room_for_the_smallest_server(plans: dict[str, Plan]) -> None:

    for plan in plans.values():
        limits.check_room(plan, limits.Usage())


@pytest.mark.django_db(transaction=True)
def test_two_at_once_cannot_take_more_than_the_plan_has(
    acme: Organisation, alice: User, plans: dict[str, Plan]
) -> None:

    services.choose_plan(actor=alice, organisation=acme, plan=plans["ember"])
    outcomes = at_once(
        [
            partial(services.create_server, actor=alice, organisation=acme, name=name, region="local")
            for name in ("one", "two", "three", "four")
        ]
    )
    refused = [outcome for outcome in outcomes if isinstance(outcome, Refused)]
    assert len(refused) == 3
    assert all("allows 1 server" in refusal.message for refusal in refused)
    assert acme.servers.count() == 1


@pytest.mark.django_db(transaction=True)
def test_two_organisations_race_for_a_name(
    acme: Organisation, alice: User, charlie: User, plans: dict[str, Plan]
) -> None:

    other = services.create_organisation(actor=charlie, name="Other", plan=plans["ember"])
    outcomes = at_once(
        [
            lambda: services.create_server(actor=alice, organisation=acme, name="chat", region="local"),
            lambda: services.create_server(actor=charlie, organisation=other, name="chat", region="local"),
        ]
    )
    assert [outcome.message for outcome in outcomes if isinstance(outcome, Refused)] == [
        "“chat.hearth.test” is taken. No server was made. Choose another name."
    ]
    assert Server.objects.count() == 1
