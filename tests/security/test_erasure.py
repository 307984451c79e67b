"""Crypto-erasure: never before the final backup expires, complete only when no copy of the keys is left."""

from __future__ import annotations

import uuid
from datetime import datetime, timedelta

import pytest
from django.db.models import F
from django.utils import timezone
from pytest_django import Settings

from audit.models import AuditEvent
from audit.services import SYSTEM
from security.errors import KeyGone, SecurityError
from security.keyring import copies, deks, erasure, keks, publish
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


def test_nothing_retained_means_at_once(settings: Settings) -> None:
    settings.HEARTH = {**settings.HEARTH, "HEARTH_DATABASE_COPIES_DAYS": 0}
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


# Copies of Hearth's own database


def test_it_is_complete_only_when_no_copy_of_the_database_is_kept(
    monkeypatch: pytest.MonkeyPatch, settings: Settings
) -> None:
    days = timedelta(days=settings.HEARTH["HEARTH_DATABASE_COPIES_DAYS"])
    final = publish.database_time() + timedelta(days=30)
    monkeypatch.setattr(seams, "keep_keys_until", [lambda *_: final])
    keks.ensure_kek(OWNER)
    # Whoever is asked for a confirmation sees the date that the request will have.
    assert erasure.complete_on(erasure.planned(OWNER)) == final + days
    row = erasure.request(SYSTEM, OWNER)
    assert erasure.complete_on(row) == final + days
    final = publish.database_time()
    Erasure.objects.update(destroy_after=final)
    erasure.advance()
    row.refresh_from_db()
    assert row.destroyed is not None
    assert (row.completed, row.complete_after) == (None, row.destroyed + days)
    assert erasure.advance() == 0
    # The days that were promised have passed.
    Erasure.objects.update(destroyed=F("destroyed") - days, complete_after=F("complete_after") - days)
    assert erasure.advance() == 1
    row.refresh_from_db()
    assert row.completed is not None
    assert erasure.complete_on(row) == row.completed
    # Copies that are kept for longer from now on move the end of those that are not complete, and no other's.
    settings.HEARTH = {**settings.HEARTH, "HEARTH_DATABASE_COPIES_DAYS": 365}
    assert erasure.complete_on(row) == row.completed


def test_a_date_that_was_set_in_the_past_counts_from_today(settings: Settings) -> None:
    """The keys are there still: copies that are made meanwhile hold them."""
    keks.ensure_kek(OWNER)
    erasure.request(SYSTEM, OWNER)
    Erasure.objects.update(destroy_after=timezone.now() - timedelta(days=90))
    found = copies.in_database_copies(OWNER)
    assert found is not None
    assert found >= timezone.now() + timedelta(days=34, hours=23)
    settings.HEARTH = {**settings.HEARTH, "HEARTH_DATABASE_COPIES_DAYS": 0}
    assert copies.in_database_copies(OWNER) is None


def test_a_shorter_time_takes_no_promised_day_back(settings: Settings) -> None:
    keks.ensure_kek(OWNER)
    erasure.request(SYSTEM, OWNER)
    erasure.advance()
    promised = erasure.complete_on(Erasure.objects.get())
    settings.HEARTH = {**settings.HEARTH, "HEARTH_DATABASE_COPIES_DAYS": 1}
    assert erasure.complete_on(Erasure.objects.get()) == promised
    settings.HEARTH = {**settings.HEARTH, "HEARTH_DATABASE_COPIES_DAYS": 50}
    assert erasure.complete_on(Erasure.objects.get()) == promised + timedelta(days=15)
