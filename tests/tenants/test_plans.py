"""A plan says how its servers are kept; staff change that for all of them, and who changes the plan takes it over."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from django.db import IntegrityError, connection, transaction
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from accounts.models import User
from audit.models import AuditEvent
from tenants import services
from tenants.errors import Refused
from tenants.models import WITH_PLAN, Organisation, Plan, Server
from tenants.services import keys, servers
from tests.cast import make_user

THREE = {"database_instances": 3, "database_synchronous": True, "database_replicas": True, "workers": 4}


def kept(server: Server) -> dict[str, Any]:
    server.refresh_from_db()
    return {key: getattr(server, key) for key in WITH_PLAN}


@pytest.fixture
def server(acme: Organisation, alice: User) -> Server:
    """One of Acme's."""
    return services.create_server(actor=alice, organisation=acme, name="berry", region="local")


def test_the_plans_that_come_with_hearth_keep_one_database(plans: dict[str, Plan], server: Server) -> None:
    one = {"database_instances": 1, "database_synchronous": False, "database_replicas": False, "workers": None}
    assert all({key: getattr(plan, key) for key in WITH_PLAN} == one for plan in plans.values())
    assert kept(server) == one


def test_staff_change_it_for_all_servers_of_the_plan(plans: dict[str, Plan], server: Server, alice: User) -> None:
    gone = services.create_server(actor=alice, organisation=server.organisation, name="gone", region="local")
    Server.objects.filter(pk=gone.pk).update(deleted=timezone.now())
    other = services.create_organisation(actor=alice, name="Other", plan=plans["ember"])
    theirs = services.create_server(actor=alice, organisation=other, name="other", region="local")
    services.change_plan(actor=alice, plan=plans["hearth"], **THREE)
    assert (kept(server), server.generation) == (THREE, 2)
    assert kept(theirs)["database_instances"] == kept(gone)["database_instances"] == 1
    event = AuditEvent.objects.get(verb="plan.change")
    assert (event.before["database_instances"], event.after["servers"]) == (1, 1)
    services.change_plan(actor=alice, plan=plans["hearth"], **THREE)
    assert kept(server) == THREE
    assert server.generation == 2, "the same again changes nothing"
    later = services.create_server(actor=alice, organisation=server.organisation, name="later", region="local")
    assert kept(later) == THREE


def test_who_changes_the_plan_takes_it_over(
    plans: dict[str, Plan], acme: Organisation, server: Server, alice: User
) -> None:
    services.change_plan(actor=alice, plan=plans["beacon"], **THREE)
    assert server.generation == 1
    plans["beacon"].refresh_from_db()
    services.choose_plan(actor=alice, organisation=acme, plan=plans["beacon"])
    assert (kept(server), server.generation) == (THREE, 2)
    services.choose_plan(actor=alice, organisation=acme, plan=plans["hearth"])
    assert (kept(server)["workers"], server.generation) == (None, 3)


@pytest.mark.parametrize(
    "columns",
    [
        {"database_instances": 0},
        {"database_instances": 4},
        {"database_synchronous": True},
        {"database_replicas": True},
        {"workers": 51},
    ],
)
def test_what_can_not_be_is_refused(
    plans: dict[str, Plan], server: Server, alice: User, columns: dict[str, Any]
) -> None:
    with pytest.raises(Refused, match="Nothing was changed"):
        services.change_plan(actor=alice, plan=plans["hearth"], **columns)
    assert server.generation == 1
    if "workers" not in columns:
        with pytest.raises(IntegrityError), transaction.atomic():
            Plan.objects.filter(code="hearth").update(**columns)


@pytest.mark.django_db(transaction=True)
def test_one_that_is_made_at_the_same_time_is_not_missed(
    plans: dict[str, Plan], acme: Organisation, alice: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The creation has read the old plan, and has not yet written its server."""
    read, changed = threading.Event(), threading.Event()
    refuse = keys.refuse_erasing

    def slow(organisation: Organisation) -> None:
        read.set()
        changed.wait(1)
        refuse(organisation)

    monkeypatch.setattr(servers, "refuse_erasing", slow)

    def create() -> None:
        try:
            services.create_server(actor=alice, organisation=acme, name="berry", region="local")
        finally:
            connection.close()

    thread = threading.Thread(target=create)
    thread.start()
    assert read.wait(60)
    services.change_plan(actor=alice, plan=plans["hearth"], **THREE)
    changed.set()
    thread.join()
    assert kept(Server.objects.get()) == THREE


def test_the_staff_page(plans: dict[str, Plan], server: Server, client_for: Callable[[User], Client]) -> None:
    staff = client_for(make_user("staff@example.org", staff=True))
    page = reverse("admin:tenants_plan_change", args=[plans["hearth"].pk])
    assert staff.get(page).status_code == 200
    wrong = staff.post(page, {"database_instances": "1", "database_synchronous": "on", "workers": ""})
    assert "needs at least 2 instances" in wrong.content.decode()
    assert staff.post(page, {"database_instances": "4", "workers": ""}).status_code == 200
    right = {"database_instances": "2", "database_synchronous": "on", "workers": "3", "name": "Free", "servers": "999"}
    assert staff.post(page, right).status_code == 302
    found = Plan.objects.get(code="hearth")
    assert (found.database_instances, found.database_synchronous, found.workers) == (2, True, 3)
    assert (found.name, found.servers) == ("Hearth", 3), "how large it is, is read only"
    assert kept(server)["workers"] == 3
    assert staff.get(reverse("admin:tenants_plan_add")).status_code == 403


def test_the_customer_reads_it(
    plans: dict[str, Plan], acme: Organisation, alice: User, client_for: Callable[[User], Client]
) -> None:
    page = reverse("organisation_plan", args=[acme.slug])
    assert "database is kept" not in client_for(alice).get(page).content.decode()
    services.change_plan(actor=alice, plan=plans["beacon"], **THREE)
    assert "database is kept 3 times" in client_for(alice).get(page).content.decode()
