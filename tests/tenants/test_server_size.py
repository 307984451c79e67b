"""Another size for a server: within the plan, never below the minimum, and never a smaller disk."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
from django.test import Client
from django.urls import reverse

from accounts.models import User
from audit.models import AuditEvent
from tenants import limits, services
from tenants.errors import Refused
from tenants.models import Organisation, Plan, Server
from tests.together import at_once

pytestmark = pytest.mark.django_db
LARGER = {"vcpu": 4, "memory_mb": 8192, "disk_gb": 40, "object_gb": 200}


@pytest.fixture
def server(make_server: Callable[[str], Server]) -> Server:
    return make_server("chat")


@pytest.fixture
def hers(alice: User, client_for: Callable[[User], Client]) -> Client:
    return client_for(alice)


def resize(alice: User, server: Server, **changes: int) -> Server:
    return services.resize_server(actor=alice, server=server, **limits.size_of(server) | changes)


def test_it_works_and_the_trail_says_what_changed(server: Server, alice: User) -> None:
    resize(alice, server, **LARGER)
    server.refresh_from_db()
    assert (limits.size_of(server), server.generation) == (LARGER, 2)
    event = AuditEvent.objects.get(verb="server.resize")
    assert {key: event.after[key] for key in LARGER} == LARGER
    assert event.before["disk_gb"] == limits.SMALLEST["disk_gb"]
    smaller = LARGER | {"vcpu": 2, "memory_mb": 4096, "object_gb": 100}
    assert limits.size_of(resize(alice, server, **smaller)) == smaller


@pytest.mark.parametrize(
    ("changes", "field", "sentence"),
    [
        ({}, "vcpu", "has that size already"),
        ({"vcpu": 1}, "vcpu", "at least 2 vCPU"),
        ({"memory_mb": 3072}, "memory_mb", "at least 4 GB of memory"),
        ({"disk_gb": 10}, "disk_gb", "at least 20 GB of disk"),
        ({"object_gb": -1}, "object_gb", "at least 100 GB of object storage"),
        ({"vcpu": 9}, "vcpu", r"has room for at most 8 vCPU here\. Nothing was changed"),
        ({"memory_mb": 10**12}, "memory_mb", "at most 16 GB of memory here"),
    ],
)
def test_what_no_server_can_have(
    server: Server, alice: User, changes: dict[str, int], field: str, sentence: str
) -> None:
    with pytest.raises(Refused, match=sentence) as refused:
        resize(alice, server, **changes)
    assert refused.value.field == field
    server.refresh_from_db()
    assert (limits.size_of(server), server.generation) == (limits.SMALLEST, 1)


def test_a_disk_never_becomes_smaller(server: Server, alice: User) -> None:
    server = resize(alice, server, disk_gb=60)
    with pytest.raises(Refused, match=r"can't become smaller, and this one has 60 GB") as refused:
        resize(alice, server, disk_gb=40)
    assert refused.value.field == "disk_gb"


def test_other_servers_leave_less(make_server: Callable[[str], Server], server: Server, alice: User) -> None:
    resize(alice, make_server("other"), vcpu=5)
    assert resize(alice, server, vcpu=3).vcpu == 3
    with pytest.raises(Refused, match="at most 3 vCPU"):
        resize(alice, server, vcpu=4)


def test_what_a_server_has_it_keeps_when_the_plan_has_shrunk(server: Server, alice: User) -> None:
    server = resize(alice, server, **LARGER)
    Plan.objects.update(vcpu=2, memory_mb=4096)
    assert resize(alice, server, disk_gb=50).vcpu == LARGER["vcpu"]
    with pytest.raises(Refused, match="at most 4 vCPU"):
        resize(alice, server, vcpu=5)


@pytest.mark.django_db(transaction=True)
def test_two_at_once_never_take_more_than_the_plan_has(make_server: Callable[[str], Server], alice: User) -> None:
    servers = [make_server("one"), make_server("two")]
    done = at_once([partial(resize, alice, each, vcpu=5) for each in servers])
    assert sum(isinstance(each, Refused) for each in done) == 1, done
    assert sorted(Server.objects.values_list("vcpu", flat=True)) == [2, 5]


def test_the_page_shows_gigabytes_and_what_the_plan_has_room_for(
    hers: Client, acme: Organisation, server: Server
) -> None:
    path = reverse("server_size", args=[acme.slug, server.pk])
    page = hers.get(path).content.decode()
    assert 'name="memory_mb" value="4"' in page
    assert "Your plan has room for up to 16." in page
    sent = {"generation": 1, "vcpu": "2", "memory_mb": "17", "disk_gb": "20", "object_gb": "100"}
    answer = hers.post(path, sent).content.decode()
    assert 'name="memory_mb" value="17"' in answer
    assert "has room for at most 16 GB of memory here" in answer
    assert hers.post(path, sent | {"memory_mb": "6"}).status_code == 302
    server.refresh_from_db()
    assert server.memory_mb == 6 * 1024
