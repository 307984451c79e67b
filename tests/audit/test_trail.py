"""The trail takes rows and gives none back; each row belongs to its verb's transaction."""

from __future__ import annotations

import pytest
from django.db import DatabaseError, transaction

from accounts.models import User
from audit.models import AuditEvent
from audit.services import SYSTEM, record
from observability.context import RequestContext, current


@pytest.mark.django_db
def test_an_event_says_who_did_what_from_where() -> None:
    alice = User.objects.create_user("alice@example.org")
    token = current.set(RequestContext(request_id="r1", address="127.0.0.9"))
    try:
        event = record(actor=alice, verb="user.create", object=alice, after={"email": alice.email})
    finally:
        current.reset(token)
    stored = AuditEvent.objects.get(pk=event.pk)
    assert (stored.actor_id, stored.actor_label, stored.verb) == (alice.pk, "alice@example.org", "user.create")
    assert (stored.object_type, stored.object_id) == ("user", str(alice.pk))
    assert (stored.address, stored.request_id, stored.after) == ("127.0.0.9", "r1", {"email": "alice@example.org"})


@pytest.mark.django_db
@pytest.mark.parametrize("change", ["update", "delete"])
def test_the_database_refuses_to_change_a_row(change: str) -> None:
    alice = User.objects.create_user("alice@example.org")
    record(actor=SYSTEM, verb="user.create", object=alice)
    rows = AuditEvent.objects.all()
    with pytest.raises(DatabaseError, match="append-only"), transaction.atomic():
        rows.update(verb="user.nothing") if change == "update" else rows.delete()
    assert AuditEvent.objects.get().verb == "user.create"


@pytest.mark.django_db(transaction=True)
def test_an_event_outside_its_verbs_transaction_is_a_fault_of_the_caller() -> None:
    alice = User.objects.create_user("alice@example.org")
    with pytest.raises(RuntimeError, match="outside its verb's transaction"):
        record(actor=alice, verb="user.create", object=alice)
    assert not AuditEvent.objects.exists()


@pytest.mark.django_db(transaction=True)
def test_a_verb_that_fails_leaves_no_event() -> None:
    alice = User.objects.create_user("alice@example.org")

    def failing_verb() -> None:
        with transaction.atomic():
            record(actor=alice, verb="user.create", object=alice)
            raise ConnectionError

    with pytest.raises(ConnectionError):
        failing_verb()
    assert not AuditEvent.objects.exists()
