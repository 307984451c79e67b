"""How often and how long: what counts for a server, what is refused, when the next base is due."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from django.db import IntegrityError, transaction
from django.utils import timezone

from accounts.models import User
from backups import orders
from backups.models import Order, Policy, ServerBackups
from backups.policies import change_policy, next_base, policy_of
from tenants.errors import Refused
from tenants.models import Server

pytestmark = pytest.mark.django_db
NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)


def test_a_servers_own_policy_counts_before_its_plans_and_that_before_the_general_one(
    server: Server, alice: User
) -> None:

    assert policy_of(server).retention_days == 30
    change_policy(alice, policy=Policy(), retention_days=31)
    assert policy_of(server).retention_days == 31
    change_policy(alice, policy=Policy(plan=server.organisation.subscription.plan), retention_days=32)
    assert policy_of(server).retention_days == 32
    change_policy(alice, policy=Policy(server=server), retention_days=33)
    assert policy_of(server).retention_days == 33


@pytest.mark.parametrize(
    ("field", "value"),
    [("retention_days", 29), ("final_days", 29), ("window_days", 31), ("window_days", 0), ("every_hours", 169),
     ("every_hours", 0), ("hour", 24), ("prove_days", 32)],
)  # fmt: skip
def test_a_policy_that_keeps_too_little_is_refused(server: Server, alice: User, field: str, value: int) -> None:

    with pytest.raises(Refused, match="Nothing was changed"):
        change_policy(alice, policy=Policy(server=server), **{field: value})
    assert not Policy.objects.exists()


def test_the_database_refuses_it_too(server: Server) -> None:

    for changes in ({"retention_days": 29}, {"window_days": 31}, {"final_days": 1}):
        with pytest.raises(IntegrityError), transaction.atomic():
            Policy.objects.create(server=server, **changes)
    Policy.objects.create()
    with pytest.raises(IntegrityError), transaction.atomic():
        Policy.objects.create()


def test_bases_are_spread_over_the_day_and_a_servers_own_time_is_always_the_same() -> None:

    policy, found = Policy(), set()
    for number in range(200):
        server = uuid.uuid5(uuid.NAMESPACE_DNS, str(number))
        due = next_base(policy, server, NOON)
        assert NOON < due <= NOON + timedelta(days=1)
        assert next_base(policy, server, due) == due + timedelta(days=1)
        found.add(due.hour)
    assert len(found) == 24


def test_a_policy_may_name_the_hour() -> None:

    assert next_base(Policy(hour=3), uuid.uuid4(), NOON) == datetime(2026, 11, 21, 3, tzinfo=UTC)
    assert next_base(Policy(hour=3, every_hours=6), uuid.uuid4(), NOON) == datetime(2026, 11, 20, 15, tzinfo=UTC)


def test_what_is_due_is_ordered_once(make_server: Callable[[str], Server]) -> None:

    server, other = make_server("chat"), make_server("other")
    ServerBackups.objects.create(server=server, next_base=timezone.now() - timedelta(days=3))
    ServerBackups.objects.create(server=other, next_base=timezone.now() + timedelta(hours=1))
    assert (orders.place_due(), orders.place_due()) == (1, 0)
    assert Order.objects.get().server == server
    row = ServerBackups.objects.get(server=server)
    assert row.next_base is not None
    assert row.next_base > timezone.now()
