"""Crypto-erasure: never before the final backup expires, complete only when no copy of the keys is left."""

from __future__ import annotations

import uuid
from datetime import datetime, timedelta

import pytest
from django.utils import timezone

from audit.models import AuditEvent
from audit.services import SYSTEM
from security.errors import KeyGone, SecurityError
from security.keyring import deks, erasure, keks
from security.keyring.deks import Context
from security.keyring.seams import seams
from security.models import PLATFORM, DataKey, Erasure, KeyEncryptionKey, Rewrap

pytestmark = pytest.mark.django_db
OWNER = uuid.uuid4()
CONTEXT = Context(OWNER, "backup.media")


@pytest.fixture
def dates(monkeypatch: pytest.MonkeyPatch) -> dict[str, datetime | None]:
    """When the final backup expires, and when the last copy of the keys does."""
    given: dict[str, datetime | None] = {"final": None, "copies": None}
    monkeypatch.setattr(seams, "keep_keys_until", [lambda *_: given["final"], lambda *_: None])
    monkeypatch.setattr(seams, "copies_until", [lambda *_: given["copies"]])
    return given


def test_it_works(dates: dict[str, datetime | None]) -> None:
    opened = deks.new_data_key(CONTEXT)
    shared = deks.shared_data_key(Context(OWNER, "column"))
    other = deks.new_data_key(Context(uuid.uuid4(), "x"))
    now = timezone.now()
    dates |= {"final": now + timedelta(days=30), "copies": now + timedelta(days=65)}
    row = erasure.request(SYSTEM, OWNER)
    assert erasure.request(SYSTEM, OWNER) == row
    assert erasure.complete_on(row) == dates["copies"]
    assert erasure.advance() == 0
    assert deks.open_data_key(opened.id, CONTEXT).value == opened.key.value

    dates["final"] = now
    Erasure.objects.update(destroy_after=now)
    assert erasure.advance() == 1
    row.refresh_from_db()
    assert (row.completed, row.complete_after) == (None, dates["copies"])
    for identity, context in ((opened.id, CONTEXT), (shared.id, Context(OWNER, "column"))):
        with pytest.raises(KeyGone):
            deks.open_data_key(identity, context)
    with pytest.raises(KeyGone, match="erased"):
        deks.new_data_key(CONTEXT)
    assert {bytes(kek.wrapped) for kek in KeyEncryptionKey.objects.filter(owner=OWNER)} == {b""}
    assert DataKey.objects.get().pk == other.id

    assert erasure.advance() == 0
    dates["copies"] = now
    Erasure.objects.update(complete_after=now)
    assert erasure.advance() == 1
    row.refresh_from_db()
    assert row.completed is not None
    assert erasure.advance() == 0
    verbs = AuditEvent.objects.filter(organisation_id=OWNER, verb__startswith="keys.").values_list("verb", flat=True)
    assert sorted(verbs) == ["keys.destroyed", "keys.erase", "keys.erased"]


def test_a_backup_made_after_the_request_moves_the_date(dates: dict[str, datetime | None]) -> None:
    keks.ensure_kek(OWNER)
    row = erasure.request(SYSTEM, OWNER)
    dates["final"] = timezone.now() + timedelta(days=7)
    assert erasure.advance() == 0
    row.refresh_from_db()
    assert (row.destroy_after, row.destroyed) == (dates["final"], None)
    assert erasure.complete_on(row) == dates["final"]


def test_nothing_retained_means_at_once() -> None:
    keks.ensure_kek(OWNER)
    keks.rotate(SYSTEM, OWNER)
    keks.destroy(SYSTEM, KeyEncryptionKey.objects.get(version=1))
    Rewrap.objects.create(owner=OWNER, total=4, done=1)
    erasure.request(SYSTEM, OWNER)
    assert [erasure.advance() for _ in range(3)] == [1, 1, 0]
    assert Rewrap.objects.get().finished is not None


def test_a_request_can_be_taken_back_until_the_keys_are_gone() -> None:
    opened = deks.new_data_key(CONTEXT)
    erasure.request(SYSTEM, OWNER)
    assert erasure.withdraw(SYSTEM, OWNER)
    assert erasure.advance() == 0
    assert deks.open_data_key(opened.id, CONTEXT).value == opened.key.value
    erasure.request(SYSTEM, OWNER)
    erasure.advance()
    assert not erasure.withdraw(SYSTEM, OWNER)


def test_the_platform_is_never_erased() -> None:
    with pytest.raises(SecurityError, match="everything would be lost"):
        erasure.request(SYSTEM, PLATFORM)


def test_a_workers_clock_that_is_ahead_destroys_nothing(
    dates: dict[str, datetime | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What can't be taken back is decided by the database's clock, which all processes share."""
    opened = deks.new_data_key(CONTEXT)
    dates["final"] = timezone.now() + timedelta(days=30)
    erasure.request(SYSTEM, OWNER)
    real = timezone.now
    with monkeypatch.context() as patch:
        patch.setattr(timezone, "now", lambda: real() + timedelta(days=365))
        erasure.advance()
    assert bytes(deks.open_data_key(opened.id, CONTEXT).value) == bytes(opened.key.value)
