"""Every address below an organisation: who is let in, whatever the method, and whosever the identifiers in it are."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.test import Client
from django.urls import URLPattern, URLResolver, get_resolver, reverse
from django.utils import timezone

from accounts.models import User
from audit.models import AuditEvent
from backups.models import Export, Proof, Restore, Store
from provisioning import services
from provisioning.models import Operation
from tenants.models import Domain, Invitation, Membership, Organisation, Plan, Server, Subscription
from tests.provisioning.fakes import ScriptedProvider

pytestmark = pytest.mark.django_db
METHODS = ("get", "head", "post", "options", "put", "patch", "delete")


def routes(resolver: Any) -> Iterator[tuple[str, set[str]]]:
    """Yield the name and the parameters of each route below an organisation."""
    for pattern in resolver.url_patterns:
        if isinstance(pattern, URLResolver):
            yield from routes(pattern)
        elif isinstance(pattern, URLPattern) and pattern.name:
            names = set(pattern.pattern.converters)
            if "slug" in names:
                yield pattern.name, names


@pytest.fixture
def theirs(server: Server, organisation: Organisation, bob: User, provider: ScriptedProvider) -> dict[str, Any]:
    """What stands in the addresses of Alice's organisation."""
    operation = services.reconcile(server.pk)
    assert operation is not None
    domain = Domain.objects.create(organisation=organisation, name="example.org", token="t", proved=timezone.now())
    invitation = Invitation.objects.create(organisation=organisation, email="dora@example.org", role="member")
    store = Store.objects.create(code="here", name="Here", kind="folder", folder="/var/backups/hearth")
    restore = Restore.objects.create(operation=operation, source=server, store=store, mode="beside", holds="copy")
    export = Export.objects.create(restore=restore, what="everything")
    proof = Proof.objects.create(server=server, kind="reading", begun=timezone.now(), result="passed")
    return {
        "slug": organisation.slug,
        "server_id": server.pk,
        "operation_id": operation.pk,
        "domain_id": domain.pk,
        "invitation_id": invitation.pk,
        "restore_id": operation.pk,
        "export_id": export.pk,
        "proof_id": proof.pk,
        "member_id": organisation.memberships.get(role="owner").pk,
    }


@pytest.fixture
def own(charlie: User, organisation: Organisation) -> Organisation:
    """Charlie's own organisation, on the same plan."""
    own = Organisation.objects.create(name="Own", slug="own")
    Subscription.objects.create(organisation=own, plan=Plan.objects.get())
    Membership.objects.create(organisation=own, user=charlie, role="owner")
    return own


def addresses(**values: Any) -> list[tuple[str, str]]:
    """Return the name and the address of every route, with these values in it."""
    found = sorted(routes(get_resolver()), key=lambda route: route[0])
    assert len(found) >= 20
    return [(name, reverse(name, kwargs={key: values[key] for key in keys})) for name, keys in found]


def words(answer: Any) -> str:
    return re.sub(r'name="csrfmiddlewaretoken" value="[^"]*"', "", answer.content.decode())


def state() -> list[Any]:
    """Return what somebody might have changed."""
    models = (Server, Operation, Domain, Invitation, Membership, Subscription, Restore, Proof)
    return [list(model.objects.order_by("pk").values()) for model in models] + [AuditEvent.objects.count()]


def test_a_stranger_gets_what_a_missing_page_gets(
    theirs: dict[str, Any], own: Organisation, charlie: User, client_for: Callable[[User], Client]
) -> None:
    his = client_for(charlie)
    nobodys = {key: uuid.uuid4() for key in theirs} | {"slug": "missing"}
    before = state()
    for slug, missing_slug in ((theirs["slug"], "missing"), (own.slug, own.slug)):
        found = addresses(**(theirs | {"slug": slug}))
        missing = addresses(**(nobodys | {"slug": missing_slug}))
        for (name, path), (_, nowhere) in zip(found, missing, strict=True):
            if slug == own.slug and not re.search(r"[0-9a-f-]{36}", path):
                continue  # that is his own page
            for method in METHODS:
                answers = [getattr(his, method)(address) for address in (path, nowhere)]
                assert answers[0].status_code in {404, 405}, (name, method)
                theirs_says, missing_says = [(each.status_code, words(each)) for each in answers]
                assert theirs_says == missing_says, (name, method)
    assert state() == before


def test_a_member_changes_nothing(theirs: dict[str, Any], bob: User, client_for: Callable[[User], Client]) -> None:
    his = client_for(bob)
    before = state()
    for name, path in addresses(**theirs):
        assert his.post(path, {"generation": 1}).status_code in {403, 405}, name
        for method in ("head", "options", "put", "patch", "delete"):
            assert getattr(his, method)(path).status_code in {200, 286, 403, 405}, (name, method)
    assert state() == before


@pytest.mark.parametrize("method", ["get", "post"])
def test_nobody_is_let_in_unasked(theirs: dict[str, Any], client: Client, method: str) -> None:
    for name, path in addresses(**theirs):
        answer = getattr(client, method)(path)
        assert answer.status_code == 405 or answer["Location"].startswith("/account/login/"), name


def test_a_form_without_its_token_does_nothing(
    theirs: dict[str, Any], alice: User, client_for: Callable[[User], Client]
) -> None:
    hers = Client(enforce_csrf_checks=True)
    hers.cookies = client_for(alice).cookies
    before = state()
    for name, path in addresses(**theirs):
        assert hers.post(path, {"generation": 1}).status_code == 403, name
    assert state() == before
