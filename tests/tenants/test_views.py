"""The pages: what they show, who may act, and that strangers learn nothing."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from accounts.models import User
from audit.models import AuditEvent
from tenants import services
from tenants.models import Domain, Invitation, Membership, Organisation, Plan, Server

pytestmark = pytest.mark.django_db
SignIn = Callable[[User], Client]
PAGES = ("organisation", "organisation_plan", "organisation_members", "organisation_domains", "organisation_keys")
ASKING = ("server_suspend", "server_upgrade", "server_size", "server_delete", "server_password")
VERBS = ("server_restart", "server_resume", "server_undelete", *ASKING)


@pytest.fixture
def server(make_server: Callable[[str], Server]) -> Server:
    return make_server("chat")


@pytest.fixture
def hers(alice: User, client_for: SignIn) -> Client:
    return client_for(alice)


def text_of(response: Any) -> str:
    """Return the page's words without its one-time tokens."""
    body = re.sub(r'name="csrfmiddlewaretoken" value="[^"]*"', "", response.content.decode())
    return " ".join(body.replace("&#x27;", "'").split())


def url(name: str, organisation: Organisation, **more: object) -> str:
    return reverse(name, kwargs={"slug": organisation.slug, **more})


# The start page


def test_a_visitor_reads_what_hearth_is(client: Client, db: None) -> None:
    page = text_of(client.get("/"))
    assert "A Matrix homeserver of your own" in page
    assert reverse("account_signup") in page


def test_a_person_is_led_to_the_next_step(
    alice: User, hers: Client, charlie: User, client_for: SignIn, plans: dict[str, Plan]
) -> None:
    assert hers.get("/").headers["Location"] == reverse("organisation_new")
    first = services.create_organisation(actor=alice, name="One", plan=plans["ember"])
    assert hers.get("/").headers["Location"] == url("organisation", first)
    services.create_organisation(actor=alice, name="Two", plan=plans["ember"])
    page = text_of(hers.get("/"))
    assert "Your organisations" in page
    assert "Two" in page


def test_a_person_without_a_second_factor_sets_one_up(db: None) -> None:
    from tests.cast import client_for, make_user  # noqa: PLC0415 (the cast is imported inside tests only)

    dora = client_for(make_user("dora@example.org", factor=False), factor=False)
    assert dora.get("/").headers["Location"] == reverse("second_factor_start")


# Organisations, plan, members, domains


def test_an_organisation_is_made_in_the_browser(hers: Client, plans: dict[str, Plan]) -> None:
    page = text_of(hers.get(reverse("organisation_new")))
    assert "2 vCPU" in page
    assert "20 GB" in page
    answer = hers.post(reverse("organisation_new"), {"name": "Acme", "plan": "ember"})
    assert answer.headers["Location"] == "/o/acme/servers/new/"
    assert "Acme is ready" in text_of(hers.get("/o/acme/servers/new/"))


@pytest.mark.parametrize(
    ("sent", "sentence"),
    [
        ({"name": "", "plan": "ember"}, "Give the organisation a name"),
        ({"name": "Acme"}, "Choose a plan."),
        ({"name": "Acme", "plan": "none"}, "Choose a plan that is offered."),
        ({"name": "!", "plan": "ember"}, "letter or"),
    ],
)
def test_a_wrong_organisation_form_is_shown_again(
    hers: Client, plans: dict[str, Plan], sent: dict[str, str], sentence: str
) -> None:
    answer = hers.post(reverse("organisation_new"), sent)
    assert answer.status_code == 200
    assert sentence in text_of(answer)
    assert not Organisation.objects.exists()


def test_the_plan_is_changed_in_the_browser(hers: Client, acme: Organisation, server: Server) -> None:
    page = text_of(hers.get(url("organisation_plan", acme)))
    assert "1 of 3" in page
    assert "4 of 16 GB" in page
    assert hers.post(url("organisation_plan", acme), {"plan": "beacon"}).status_code == 302
    answer = hers.post(url("organisation_plan", acme), {"plan": "beacon"})
    assert "already your plan" in text_of(answer)


def test_members_are_invited_and_join(
    hers: Client, acme: Organisation, charlie: User, client_for: SignIn, bob: User
) -> None:
    members = url("organisation_members", acme)
    unknown = hers.post(members, {"email": "nobody@example.org", "role": "member"}, follow=True)
    known = hers.post(members, {"email": "charlie@example.org", "role": "member"}, follow=True)
    sentence = "is invited. Hearth tells them by mail"
    assert sentence in text_of(unknown)
    assert sentence in text_of(known)
    his = client_for(charlie)
    assert "Join Acme?" in text_of(his.get("/"))
    invitation = Invitation.objects.get(email=charlie.email)
    answer = his.post(reverse("invitation_answer", args=[invitation.pk, "accept"]))
    assert answer.headers["Location"] == url("organisation", acme)
    row = Membership.objects.get(user=charlie)
    assert hers.post(url("member_remove", acme, member_id=row.pk), follow=True).status_code == 200
    assert not Membership.objects.filter(user=charlie).exists()


def test_an_invitation_to_somebody_else_does_not_exist(
    acme: Organisation, alice: User, charlie: User, client_for: SignIn
) -> None:
    invitation = services.add_member(actor=alice, organisation=acme, email="dora@example.org", role="owner")
    his = client_for(charlie)
    theirs = his.post(reverse("invitation_answer", args=[invitation.pk, "accept"]))
    missing = his.post(reverse("invitation_answer", args=[uuid.uuid4(), "accept"]))
    assert theirs.status_code == missing.status_code == 404
    assert text_of(theirs) == text_of(missing)


def test_the_last_owner_is_told_to_stay(hers: Client, acme: Organisation, alice: User) -> None:
    row = acme.memberships.get(user=alice)
    answer = hers.post(url("member_remove", acme, member_id=row.pk), follow=True)
    assert "is the only owner" in text_of(answer)


def test_a_member_may_leave_but_remove_nobody(acme: Organisation, bob: User, alice: User, client_for: SignIn) -> None:
    his = client_for(bob)
    assert his.post(url("member_remove", acme, member_id=acme.memberships.get(user=alice).pk)).status_code == 403
    assert his.post(url("member_remove", acme, member_id=acme.memberships.get(user=bob).pk)).status_code == 302
    assert not acme.memberships.filter(user=bob).exists()


def test_a_domain_page_shows_the_record(hers: Client, acme: Organisation) -> None:
    answer = hers.post(url("organisation_domains", acme), {"name": "example.org"}, follow=True)
    domain = Domain.objects.get()
    page = text_of(answer)
    assert "_hearth-challenge.example.org" in page
    assert f"hearth-verify={domain.token}" in page
    assert "reserved for nobody" in page
    assert hers.post(url("domain_remove", acme, domain_id=domain.pk)).status_code == 302
    assert not Domain.objects.exists()


def test_a_wrong_domain_gets_its_sentence(hers: Client, acme: Organisation) -> None:
    answer = hers.post(url("organisation_domains", acme), {"name": "https://example.org"})
    assert "without https://" in text_of(answer)
    assert not Domain.objects.exists()


# Servers


def test_a_server_is_made_in_the_browser(hers: Client, acme: Organisation) -> None:
    page = text_of(hers.get(url("server_new", acme)))
    assert "It can never change." in page
    assert "hearth.test" in page
    answer = hers.post(url("server_new", acme), {"name": "chat", "region": "local"})
    server = Server.objects.get()
    assert answer.headers["Location"] == url("server", acme, server_id=server.pk)


@pytest.mark.parametrize(
    ("sent", "sentence"),
    [
        ({"name": "Chat", "region": "local"}, "Write “chat”"),
        ({"name": "taken", "region": "local"}, "You have a server called"),
        ({"name": "x", "region": "moon"}, "takes no new servers"),
        ({"name": "x", "region": "local", "domain": "example.org"}, "not on a domain that you have proved"),
        ({"name": "\x00", "region": "local"}, "Null characters"),
    ],
)
def test_a_wrong_server_form_is_shown_again(
    hers: Client, acme: Organisation, make_server: Callable[[str], Server], sent: dict[str, str], sentence: str
) -> None:
    make_server("taken")
    answer = hers.post(url("server_new", acme), sent)
    assert answer.status_code == 200
    assert sentence in text_of(answer)
    assert Server.objects.count() == 1


def test_a_full_plan_says_so_before_anybody_types(
    hers: Client, acme: Organisation, make_server: Callable[[str], Server]
) -> None:
    for name in ("one", "two", "three"):
        make_server(name)
    assert "No room in your plan" in text_of(hers.get(url("server_new", acme)))
    answer = hers.post(url("server_new", acme), {"name": "four", "region": "local"})
    assert "all are in use" in text_of(answer)


@pytest.mark.parametrize("verb", ASKING)
def test_a_question_comes_before_a_heavy_verb(hers: Client, acme: Organisation, server: Server, verb: str) -> None:
    page = text_of(hers.get(url(verb, acme, server_id=server.pk)))
    assert 'name="generation" value="1"' in page
    assert "Cancel" in page


@pytest.mark.parametrize(
    ("verb", "more", "done"),
    [
        ("server_restart", {}, "The server restarts"),
        ("server_suspend", {"message": "Moving"}, "is being suspended"),
        ("server_upgrade", {"version": "1.156.0"}, "is being upgraded"),
        (
            "server_size",
            {"vcpu": "4", "memory_mb": "8", "disk_gb": "40", "object_gb": "200"},
            "The server gets its new size",
        ),
        ("server_password", {}, "A new password is being set"),
        ("server_delete", {"confirm": "chat.hearth.test"}, "is being closed"),
    ],
)
def test_a_verb_is_done_once_and_a_stale_form_does_nothing(
    hers: Client, server: Server, verb: str, more: dict[str, str], done: str
) -> None:
    target = url(verb, server.organisation, server_id=server.pk)
    assert done in text_of(hers.post(target, {"generation": 1, **more}, follow=True))
    again = text_of(hers.post(target, {"generation": 1, **more}, follow=True))
    assert "This page is out of date" in again
    without = text_of(hers.post(target, more, follow=True))
    assert "This page is out of date" in without
    server.refresh_from_db()
    assert server.generation == 2


def test_a_wrong_name_keeps_the_server(hers: Client, acme: Organisation, server: Server) -> None:
    target = url("server_delete", acme, server_id=server.pk)
    answer = hers.post(target, {"generation": 1, "confirm": "other"})
    assert "not the name of this server" in text_of(answer)
    server.refresh_from_db()
    assert server.desired == "running"


def test_a_version_that_does_not_exist_is_refused_beside_its_field(
    hers: Client, acme: Organisation, server: Server
) -> None:
    answer = hers.post(url("server_upgrade", acme, server_id=server.pk), {"generation": 1, "version": "9.9.9"})
    assert "does not offer Synapse 9.9.9" in text_of(answer)


def test_suspend_resume_delete_and_bring_back(hers: Client, acme: Organisation, server: Server) -> None:
    steps = [
        ("server_suspend", {"message": ""}, "suspended"), ("server_resume", {}, "running"),
        ("server_delete", {"confirm": "chat.hearth.test"}, "deleted"), ("server_undelete", {}, "running"),
    ]  # fmt: skip
    for generation, (verb, more, desired) in enumerate(steps, start=1):
        hers.post(url(verb, acme, server_id=server.pk), {"generation": generation, **more})
        server.refresh_from_db()
        assert (server.desired, server.generation) == (desired, generation + 1)


# Who may see and act


def test_pages_want_a_signed_in_person(client: Client, acme: Organisation, server: Server) -> None:
    for name in PAGES:
        assert client.get(url(name, acme)).headers["Location"].startswith(reverse("account_login"))
    for verb in VERBS:
        target = url(verb, acme, server_id=server.pk)
        assert client.post(target).headers["Location"].startswith(reverse("account_login"))


def test_a_member_looks_and_does_not_act(acme: Organisation, server: Server, bob: User, client_for: SignIn) -> None:
    his = client_for(bob)
    for name in PAGES:
        assert his.get(url(name, acme)).status_code == 200
    events = AuditEvent.objects.count()
    for verb in VERBS:
        answer = his.post(url(verb, acme, server_id=server.pk), {"generation": 1})
        assert answer.status_code == 403
        assert "Only owners of this organisation can do this" in text_of(answer)
    for name in ("organisation_plan", "organisation_members", "organisation_domains", "server_new"):
        assert his.post(url(name, acme), {"name": "x"}).status_code == 403
    assert AuditEvent.objects.count() == events


def test_a_stranger_gets_the_answer_of_a_missing_page(
    acme: Organisation, server: Server, charlie: User, plans: dict[str, Plan], client_for: SignIn
) -> None:
    own = services.create_organisation(actor=charlie, name="Own", plan=plans["ember"])
    his = client_for(charlie)
    for name in PAGES:
        same_404(his, url(name, acme), f"/o/missing{url(name, acme).removeprefix('/o/acme')}")
    for verb in VERBS:
        same_404(his, url(verb, own, server_id=server.pk), url(verb, own, server_id=uuid.uuid4()), post=True)
        same_404(his, url(verb, acme, server_id=server.pk), url(verb, acme, server_id=uuid.uuid4()), post=True)


def same_404(client: Client, theirs: str, missing: str, *, post: bool = False) -> None:
    """Check that both addresses answer alike, with the same queries."""
    answers = []
    for target in (theirs, missing):
        with CaptureQueriesContext(
            connection,
        ) as queries:
            answer = client.post(target, {"generation": 1}) if post else client.get(target)
        shapes = [re.sub(r"'[^']*'", "?", query["sql"]) for query in queries.captured_queries]
        answers.append((answer.status_code, text_of(answer), shapes))
    assert answers[0] == answers[1]
    assert answers[0][0] == 404


def test_reading_is_not_acting(hers: Client, acme: Organisation, server: Server) -> None:
    for verb in ("server_restart", "server_resume", "server_undelete"):
        assert hers.get(url(verb, acme, server_id=server.pk)).status_code == 405


# The cost of a list does not grow with its rows


@pytest.mark.parametrize("name", ["organisation_members", "organisation_domains", "home"])
def test_a_list_costs_the_same_at_1_and_100_rows(
    hers: Client, acme: Organisation, alice: User, plans: dict[str, Plan], name: str
) -> None:
    target = "/" if name == "home" else url(name, acme)
    grow(acme, alice, range(1))
    hers.get(target)
    with CaptureQueriesContext(connection) as few:
        assert hers.get(target).status_code == 200
    grow(acme, alice, range(1, 100))
    with CaptureQueriesContext(connection) as many:
        assert hers.get(target).status_code == 200
    assert len(many) == len(few)


def grow(acme: Organisation, alice: User, numbers: range) -> None:
    """Add one of everything for each number."""
    for number in numbers:
        person = User.objects.create(email=f"p{number}@example.org")
        Membership.objects.create(organisation=acme, user=person, role="member")
        Invitation.objects.create(organisation=acme, email=f"i{number}@example.org", role="member")
        Domain.objects.create(organisation=acme, name=f"d{number}.example.org", token="t")
        other = Organisation.objects.create(name=f"Other {number}", slug=f"other-{number}")
        Membership.objects.create(organisation=other, user=alice, role="owner")


# What is gone is gone at once


def test_removal_takes_effect_at_once(
    acme: Organisation, server: Server, alice: User, bob: User, client_for: SignIn
) -> None:
    his = client_for(bob)
    assert his.get(url("organisation", acme)).status_code == 200
    services.remove_member(actor=alice, membership=acme.memberships.get(user=bob))
    for name in PAGES:
        assert his.get(url(name, acme)).status_code == 404
    assert his.get(url("server", acme, server_id=server.pk)).status_code == 404
    assert "Acme" not in his.get("/", follow=True).content.decode()


def test_an_owner_who_becomes_a_member_acts_no_more(
    acme: Organisation, server: Server, bob: User, client_for: SignIn
) -> None:
    acme.memberships.filter(user=bob).update(role="owner")
    his = client_for(bob)
    assert his.get(url("server_delete", acme, server_id=server.pk)).status_code == 200
    acme.memberships.filter(user=bob).update(role="member")
    assert his.post(url("server_restart", acme, server_id=server.pk), {"generation": 1}).status_code == 403


LONG_ADDRESS = f"{'a' * 60}@{'b' * 60}.{'c' * 60}.{'d' * 60}.{'e' * 20}.org"
WEIRD = ("a\x00b", "x" * 1_000_000, "ü" * 100_000, "\u202eevil", "👩‍👩‍👧‍👦", "9" * 5000, "-1", LONG_ADDRESS)


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("organisation_new", "name plan"),
        ("organisation_plan", "plan"),
        ("organisation_members", "email role"),
        ("organisation_domains", "name"),
        ("server_new", "name region domain"),
        ("server_suspend", "message generation"),
        ("server_delete", "confirm"),
        ("server_upgrade", "version"),
        ("server_size", "vcpu memory_mb disk_gb object_gb generation"),
    ],
)
def test_whatever_is_typed_gets_a_sentence(hers: Client, server: Server, name: str, fields: str) -> None:
    good = {"name": "new", "plan": "ember", "email": "dora@example.org", "role": "member", "region": "local",
            "generation": 1, "version": "1.156.0", "vcpu": "4", "memory_mb": "8", "disk_gb": "40",
            "object_gb": "200"}  # fmt: skip
    place: dict[str, object] = {} if name == "organisation_new" else {"slug": "acme"}
    if name.startswith("server_") and name != "server_new":
        place["server_id"] = server.pk
    for field in fields.split():
        for value in WEIRD:
            assert hers.post(reverse(name, kwargs=place), good | {field: value}).status_code in {200, 302}
