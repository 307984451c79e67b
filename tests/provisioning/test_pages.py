"""The pages of servers: members look, owners act, strangers learn nothing."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from accounts.models import User
from audit.models import AuditEvent
from provisioning import engine, services
from provisioning.models import Operation, ServerSecret, ServerStatus
from provisioning.providers.base import ProviderError
from tenants.errors import Refused
from tenants.models import Organisation, Server
from tests.provisioning.fakes import ScriptedProvider
from tests.provisioning.test_leases import in_threads

pytestmark = pytest.mark.django_db(transaction=True)
ClientFor = Callable[[User], Client]


def url(name: str, server: Server, *more: object) -> str:
    return reverse(name, args=[server.organisation.slug, server.pk, *more])


def make(server: Server) -> Operation:
    operation = services.reconcile(server.pk)
    assert operation is not None
    engine.run(operation.pk)
    operation.refresh_from_db()
    return operation


def failed(server: Server, provider: ScriptedProvider) -> Operation:
    def fail() -> None:
        raise ProviderError("The disk is full. Free some space.", code="DiskFull", retry=False)

    provider.faults["configure"] = [fail]
    return make(server)


@pytest.fixture
def failure(server: Server, provider: ScriptedProvider) -> Operation:
    """An operation that failed, and that an owner may retry."""
    return failed(server, provider)


def test_empty(organisation: Organisation, alice: User, bob: User, client_for: ClientFor) -> None:
    page = client_for(alice).get(reverse("organisation", args=[organisation.slug])).content.decode()
    assert "No server yet" in page
    assert reverse("server_new", args=[organisation.slug]) in page
    assert (
        reverse("server_new", args=[organisation.slug])
        not in client_for(bob).get(reverse("organisation", args=[organisation.slug])).content.decode()
    )


def test_the_list_shows_each_server_with_its_status(
    server: Server, provider: ScriptedProvider, alice: User, client_for: ClientFor
) -> None:
    make(server)
    page = client_for(alice).get(reverse("organisation", args=["alice-co"])).content.decode()
    assert "berry.hearth.localhost" in page
    assert 'data-tone="good">Ready' in page


@pytest.mark.parametrize("name", ["organisation", "server", "server_live"])
def test_a_stranger_finds_nothing(
    server: Server, provider: ScriptedProvider, charlie: User, client_for: ClientFor, name: str
) -> None:
    path = reverse(name, args=["alice-co"]) if name == "organisation" else url(name, server)
    missing = path.replace(str(server.pk), str(server.pk)[::-1]).replace("alice-co", "no-such")
    client = client_for(charlie)
    assert (client.get(path).status_code, client.get(missing).status_code) == (404, 404)


@pytest.mark.parametrize("verb", ["operation_retry", "operation_cancel", "server_reveal"])
def test_members_look_and_owners_act(
    failure: Operation, bob: User, charlie: User, client_for: ClientFor, verb: str
) -> None:
    operation, server = failure, failure.server
    path = url(verb, server) if verb == "server_reveal" else url(verb, server, operation.pk)
    assert client_for(charlie).post(path).status_code == 404
    assert client_for(bob).post(path).status_code == 403
    assert client_for(bob).get(path).status_code == 405
    operation.refresh_from_db()
    assert operation.state == "failed"
    assert client_for(bob).get(url("server_log", server, operation.pk)).status_code == 200
    assert client_for(charlie).get(url("server_log", server, operation.pk)).status_code == 404


def test_an_operation_of_another_server_is_missing(
    server: Server, make_server: Callable[..., Server], provider: ScriptedProvider, alice: User, client_for: ClientFor
) -> None:
    operation = make(make_server("cherry"))
    assert client_for(alice).get(url("server_log", server, operation.pk)).status_code == 404


def test_while_it_is_made_the_page_asks_for_itself(
    server: Server, provider: ScriptedProvider, alice: User, client_for: ClientFor
) -> None:
    operation = services.reconcile(server.pk)
    client = client_for(alice)
    page = client.get(url("server", server)).content.decode()
    assert f'hx-get="{url("server_live", server)}"' in page
    assert '<meta http-equiv="refresh"' in page
    assert 'data-state="waiting"' in page
    assert operation is not None
    assert url("operation_cancel", server, operation.pk) in page
    assert client.get(url("server_live", server)).status_code == 200
    assert url("server_restart", server) not in page
    engine.run(operation.pk)
    live = client.get(url("server_live", server))
    assert live.status_code == 286
    assert "hx-get" not in live.content.decode()
    assert url("server_restart", server) in live.content.decode()


def test_before_anything_is_known(
    server: Server, provider: ScriptedProvider, alice: User, client_for: ClientFor
) -> None:
    page = client_for(alice).get(url("server", server)).content.decode()
    assert "waits for a worker" in page
    assert "hx-get" in page


def test_ready_shows_how_to_connect(
    server: Server, provider: ScriptedProvider, alice: User, client_for: ClientFor
) -> None:
    make(server)
    page = client_for(alice).get(url("server", server)).content.decode()
    assert provider.url in page
    assert "@admin:berry.hearth.localhost" in page
    assert url("server_reveal", server) in page
    assert "neither a phone nor another computer" in page
    for secret in ServerSecret.objects.filter(server=server):
        assert str(secret.value) not in page


def test_the_password_is_shown_once(
    server: Server, provider: ScriptedProvider, alice: User, client_for: ClientFor
) -> None:
    make(server)
    password = str(ServerSecret.objects.get(server=server, name="admin_password").value)
    client = client_for(alice)
    shown = client.post(url("server_reveal", server))
    assert password in shown.content.decode()
    assert "no-store" in shown["Cache-Control"]
    again = client.post(url("server_reveal", server), follow=True).content.decode()
    assert password not in again
    assert "shown already" in again
    event = AuditEvent.objects.get(verb="server.reveal_password")
    assert event.actor_id == alice.pk
    assert password not in str(event.after)


def test_an_old_password_is_not_shown_while_a_new_one_is_set(
    server: Server, provider: ScriptedProvider, alice: User
) -> None:
    make(server)
    Server.objects.filter(pk=server.pk).update(password_resets=1, generation=2)
    services.reconcile(server.pk)
    with pytest.raises(Refused, match="being set just now"):
        services.reveal_password(alice, server=server)


def test_two_at_once_and_one_gets_it(server: Server, provider: ScriptedProvider, alice: User) -> None:
    make(server)

    def reveal() -> str:
        try:
            return services.reveal_password(alice, server=server)
        except Refused:
            return ""

    shown = in_threads(4, reveal)
    assert len([password for password in shown if password]) == 1


def test_a_failure_has_its_reason_and_the_next_step(
    server: Server, provider: ScriptedProvider, alice: User, bob: User, client_for: ClientFor
) -> None:
    operation = failed(server, provider)
    page = client_for(alice).get(url("server", server)).content.decode()
    assert "The disk is full. Free some space." in page
    assert "DiskFull" in page
    assert url("operation_retry", server, operation.pk) in page
    assert (
        url("operation_retry", server, operation.pk) not in client_for(bob).get(url("server", server)).content.decode()
    )
    client_for(alice).post(url("operation_retry", server, operation.pk))
    engine.run(operation.pk)
    assert ServerStatus.objects.get(server=server).phase == "ready"


def test_cancel_from_the_page(server: Server, provider: ScriptedProvider, alice: User, client_for: ClientFor) -> None:
    operation = services.reconcile(server.pk)
    assert operation is not None
    client = client_for(alice)
    page = client.post(url("operation_cancel", server, operation.pk), follow=True).content.decode()
    assert "Making the server was cancelled" in page
    assert url("operation_retry", server, operation.pk) in page
    again = client.post(url("operation_cancel", server, operation.pk), follow=True).content.decode()
    assert "nothing to cancel" in again


def test_the_log_of_an_operation(server: Server, provider: ScriptedProvider, bob: User, client_for: ClientFor) -> None:
    operation = make(server)
    page = client_for(bob).get(url("server_log", server, operation.pk)).content.decode()
    assert "start is done." in page
    assert len(re.findall('data-state="done"', page)) == 7


def test_a_page_costs_the_same_whatever_it_lists(
    server: Server, make_server: Callable[..., Server], provider: ScriptedProvider, alice: User, client_for: ClientFor
) -> None:
    make(server)
    client = client_for(alice)

    def cost(path: str) -> int:
        client.get(path)  # a key that nobody used for seconds is wiped, and read again once
        with CaptureQueriesContext(connection) as queries:
            assert client.get(path).status_code == 200
        return len(queries)

    paths = [reverse("organisation", args=["alice-co"]), url("server", server)]
    few = [cost(path) for path in paths]
    for _ in range(21):
        make(make_server())
    for restarts in range(1, 12):
        Server.objects.filter(pk=server.pk).update(restarts=restarts, generation=restarts + 1)
        make(server)
    assert [cost(path) for path in paths] == few
    second = client.get(paths[0], {"page": "2"}).content.decode()
    assert "Page 2 of 2" in second
