"""Every page's Content-Security-Policy, and that the pages keep to it: a browser would silently drop what does not."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Iterator
from html.parser import HTMLParser

import pytest
from django.test import Client
from django.urls import URLPattern, URLResolver, get_resolver
from django.utils import timezone

from accounts.models import User
from notifications.models import Mail
from provisioning.models import Operation, ServerStatus
from tenants.models import Domain, Membership, Organisation, Plan, Server, Subscription

UNKNOWN = str(uuid.UUID(int=1))
PARAMETER = re.compile(r"\(\?P<(\w+)>(?:[^()]|\([^()]*\))*\)|<(?:\w+:)?(\w+)>")
DATA = {"application/json"}
"""Scripts that no browser runs."""
SEEN = {"nobody": "account_login", "alice": "server", "charlie": "organisation_new"}
"""A page that each must have seen, so that the walk can't silently reach none."""


class Page(HTMLParser):
    """What a strict policy forbids in a page, and the nonces that it names."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.faults: list[str] = []
        self.nonces: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        bad = [name for name in found if name == "style" or name.startswith("on")]
        self.faults += [f"<{tag} {name}>" for name in bad]
        self.faults += [f"<{tag} {name}>" for name, value in attrs if (value or "").startswith("javascript:")]
        if tag == "style" or (tag == "script" and "src" not in found and found.get("type") not in DATA):
            self.nonces.add(found.get("nonce") or "")


@pytest.fixture
def places(alice: User) -> dict[str, str]:
    """One of everything that an address can name."""
    plan = Plan.objects.create(
        code="t", name="Test", servers=9, users=900, vcpu=99, memory_mb=99000, disk_gb=999, object_gb=9999
    )
    organisation = Organisation.objects.create(name="Alice & Co", slug="alice-co")
    Subscription.objects.create(organisation=organisation, plan=plan)
    Membership.objects.create(organisation=organisation, user=alice, role="owner")
    server = Server.objects.create(
        organisation=organisation, name="berry", server_name="berry.hearth.localhost", region="local",
        version="1.150.0", users=100,
    )  # fmt: skip
    ServerStatus.objects.create(server=server)
    operation = Operation.objects.create(
        server=server, kind="create", generation=1, state="failed", run_after=timezone.now()
    )
    domain = Domain.objects.create(organisation=organisation, name="example.org")
    mail = Mail.objects.create(recipient="alice@example.org", subject="Hello", text="Hello", state=Mail.State.INBOX)
    return {
        "slug": organisation.slug,
        "server_id": str(server.pk),
        "operation_id": str(operation.pk),
        "domain_id": str(domain.pk),
        "mail_id": str(mail.pk),
    }


def addresses(resolver: URLResolver, before: str = "") -> Iterator[str]:
    """Yield every route as it is written, outside /admin/."""
    for each in resolver.url_patterns:
        route = before + str(each.pattern).removeprefix("^")
        if isinstance(each, URLPattern):
            yield "/" + route.removesuffix("$").removesuffix(r"\Z")
        elif not route.startswith("admin/"):
            yield from addresses(each, route)


def filled(route: str, places: dict[str, str]) -> str:
    """Return the address with its parameters; what there is none of gets a value that names nothing."""
    return PARAMETER.sub(lambda found: places.get(found[1] or found[2], "1" if "int:" in found[0] else UNKNOWN), route)


@pytest.mark.parametrize("who", ["nobody", "alice", "charlie"])
def test_no_page_outside_the_console_allows_what_is_unsafe(
    who: str, alice: User, charlie: User, places: dict[str, str], client_for: Callable[[User], Client]
) -> None:
    person = {"alice": alice, "charlie": charlie}.get(who)
    seen, nonces = set[str](), list[str]()
    for route in addresses(get_resolver()):
        client = client_for(person) if person else Client()
        answer = client.get(filled(route, places))
        policy = answer["Content-Security-Policy"]
        assert "unsafe" not in policy, route
        assert "default-src 'self'" in policy, route
        for word in ("object-src 'none'", "base-uri 'none'", "form-action 'self'", "frame-ancestors 'none'"):
            assert word in policy, (route, word)
        if answer.get("Content-Type", "").startswith("text/html"):
            seen |= {answer.resolver_match.view_name} if answer.status_code == 200 else set()
            page = Page(answer.content.decode())
            assert not page.faults, (route, page.faults)
            assert all(f"'nonce-{nonce}'" in policy for nonce in page.nonces), route
            nonces += page.nonces
    assert len(nonces) == len(set(nonces))
    assert SEEN[who] in seen
