"""Key bundles while the database's clock is wrong: nothing that was published is missing when it is needed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import pytest
from django.utils import timezone

from audit.services import SYSTEM
from security.keyring import copies, erasure, publish, recovery, roots, upkeep
from security.keyring.seams import seams
from security.models import BundleFile, RootKey
from tests.security.places import OWNER, Faulty, Keys, lose, make, opens

pytestmark = pytest.mark.django_db
YEAR = timedelta(days=365)


@pytest.fixture(autouse=True)
def _two_places(both: list[Faulty], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seams, "keep_keys_until", [])


@contextmanager
def clock(ahead: timedelta) -> Iterator[None]:
    """The database's clock is wrong inside the block."""
    real = publish.database_time
    with pytest.MonkeyPatch.context() as patch:
        for module in (publish, upkeep):
            patch.setattr(module, "database_time", lambda: real() + ahead)
        yield


def keep() -> None:
    upkeep.keep(seconds=30)


def published(count: int = 1) -> Keys:
    keys = make(count)
    publish.publish(keys)
    return keys


def test_what_was_published_after_a_clock_was_ahead_comes_back(both: list[Faulty]) -> None:
    keys = published()
    with clock(YEAR):
        keep()
    keys |= published()  # before anybody looked
    keep()
    keys |= published()
    lose()
    recovery.from_places(SYSTEM, both)
    assert opens(keys)


def test_the_whole_keyring_is_written_again_once_the_clock_is_right(both: list[Faulty]) -> None:
    make()
    with clock(YEAR):
        keep()
    keep()
    now = publish.database_time()
    assert all(row.created <= now for row in BundleFile.objects.all())
    assert not [place for place in both if upkeep.due(place)], "and not again and again"
    with clock(timedelta(days=1.5)):
        assert [place for place in both if upkeep.due(place)] == both


def test_a_root_key_of_a_clock_that_was_ahead_writes_no_keyring_after_keyring(both: list[Faulty]) -> None:
    make()
    roots.ensure_root()
    RootKey.objects.update(created=timezone.now() + YEAR)
    keep()
    assert not [place for place in both if upkeep.due(place)]


def test_what_is_published_while_the_clock_is_behind_stays(both: list[Faulty]) -> None:
    make()
    keep()
    with clock(timedelta(days=1.1)):
        keep()
    with clock(-YEAR):
        keys = published()
    keep()
    lose()
    recovery.from_places(SYSTEM, both)
    assert opens(keys)


def test_an_erasure_waits_for_a_bundle_of_a_clock_that_was_ahead(both: list[Faulty]) -> None:
    make()
    with clock(YEAR):
        keep()
    erasure.request(SYSTEM, OWNER)
    erasure.advance()
    erasure.advance()
    until = copies.in_bundles(OWNER)
    assert until is not None
    assert until > publish.database_time() + timedelta(days=1)
