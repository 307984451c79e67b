"""Sealed values open only for their own place or purpose, with their own keys, and unchanged."""

from __future__ import annotations

import base64
import uuid
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis
from hypothesis import strategies as st
from pytest_django import Settings

from accounts.sessions import SessionStore
from audit.services import SYSTEM
from security.errors import KeyFileError, KeySourceError, UnsealError
from security.keyring import deks, erasure, keks
from security.models import PLATFORM, DataKey
from security.rootkey import ensure_root_key
from security.sealing import Place, seal, seal_at, unseal, unseal_at
from tests.security.old import seal_old

pytestmark = pytest.mark.django_db
EXAMPLES = hypothesis(suppress_health_check=list(HealthCheck), max_examples=80, deadline=None)
OWNER = uuid.uuid4()
PLACE = Place("app.table", "column", ("1", "name"), OWNER)
OTHERS = [
    Place("app.other", "column", ("1", "name"), OWNER),
    Place("app.table", "other", ("1", "name"), OWNER),
    Place("app.table", "column", ("2", "name"), OWNER),
    Place("app.table", "column", ("1name",), OWNER),
    Place("app.table", "column", ("1", "name"), uuid.uuid4()),
    Place("app.table", "column", ("1", "name"), PLATFORM),
]


@given(st.binary(max_size=300))
@EXAMPLES
def test_it_works(plaintext: bytes) -> None:
    assert unseal(seal(plaintext, "one"), "one") == plaintext
    assert unseal_at(seal_at(plaintext, PLACE), PLACE) == plaintext


def test_the_same_text_is_never_sealed_to_the_same_bytes() -> None:
    assert seal(b"secret", "one") != seal(b"secret", "one")
    assert b"secret" not in seal(b"secret", "one")


def test_another_purpose_cannot_open_it() -> None:
    with pytest.raises(UnsealError, match="two"):
        unseal(seal(b"secret", "one"), "two")


@pytest.mark.parametrize("other", OTHERS)
def test_another_place_cannot_open_it(other: Place) -> None:
    sealed = seal_at(b"secret", PLACE)
    with pytest.raises(UnsealError, match="row"):
        unseal_at(sealed, other)
    assert unseal_at(sealed, PLACE) == b"secret"


def test_a_value_of_a_row_is_not_one_of_a_purpose() -> None:
    with pytest.raises(UnsealError):
        unseal(seal_at(b"secret", Place("a", "b", ())), "a.b")
    with pytest.raises(UnsealError):
        unseal_at(seal(b"secret", "a.b"), Place("a", "b", ()))


@pytest.mark.parametrize("old", [True, False])
@given(st.data())
@EXAMPLES
def test_any_changed_or_missing_byte_is_found(old: bool, data: st.DataObject) -> None:
    sealed = bytearray((seal_old if old else seal)(b"a secret of some length", "one"))
    place = data.draw(st.integers(0, len(sealed) - 1))
    if data.draw(st.booleans()):
        sealed[place] ^= data.draw(st.integers(1, 255))
    else:
        del sealed[place:]
    with pytest.raises(UnsealError):
        unseal(bytes(sealed), "one")


def test_what_version_1_sealed_still_opens() -> None:
    assert unseal(seal_old(b"secret", "one"), "one") == b"secret"
    assert unseal_at(seal_old(b"secret", "app.table.column"), PLACE) == b"secret"
    with pytest.raises(UnsealError, match="this root key"):
        unseal_at(seal_old(b"secret", "app.table.other"), PLACE)


def test_version_1_needs_its_key_file(tmp_path: Path, settings: Settings) -> None:
    sealed = seal_old(b"secret", "one")
    other = tmp_path / "keys" / "other.key"
    ensure_root_key(other)
    settings.HEARTH = {**settings.HEARTH, "HEARTH_KEY_FILE": str(other)}
    with pytest.raises(UnsealError):
        unseal(sealed, "one")
    other.unlink()
    with pytest.raises(KeyFileError, match="backup"):
        unseal(sealed, "one")


def test_the_root_key_is_made_once_and_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "root.key"
    ensure_root_key(path)
    first = path.read_bytes()
    ensure_root_key(path)
    assert path.read_bytes() == first
    assert path.stat().st_mode & 0o777 == 0o600
    assert [each.name for each in path.parent.iterdir()] == ["root.key"]


def test_each_owner_and_column_has_a_key_of_its_own() -> None:
    seal_at(b"", PLACE)
    seal_at(b"", PLACE)
    seal_at(b"", OTHERS[2])
    assert DataKey.objects.count() == 1
    for other in OTHERS:
        seal_at(b"", other)
    assert DataKey.objects.count() == 5


def test_rotation_and_compromise_keep_values_readable() -> None:
    sealed = seal_at(b"secret", PLACE)
    keks.rotate(SYSTEM, OWNER)
    keks.rotate(SYSTEM, OWNER, compromised=True)
    keks.cache.clear()
    deks.cache.clear()
    assert unseal_at(sealed, PLACE) == b"secret"
    assert seal_at(b"secret", PLACE)[1:17] != sealed[1:17]


def test_an_erased_owners_values_are_gone() -> None:
    sealed, other = seal_at(b"secret", PLACE), seal_at(b"secret", OTHERS[4])
    erasure.request(SYSTEM, OWNER)
    erasure.advance()
    with pytest.raises(UnsealError, match="erased"):
        unseal_at(sealed, PLACE)
    assert unseal_at(other, OTHERS[4]) == b"secret"


def test_a_session_of_version_1_ends_with_the_key_file(settings: Settings) -> None:
    old = base64.b64encode(seal_old(b'{"of": "before"}', "accounts.session")).decode()
    assert SessionStore().decode(old) == {"of": "before"}
    present = SessionStore().encode({"of": "today"})
    keks.cache.clear()
    deks.cache.clear()
    settings.HEARTH = {**settings.HEARTH, "HEARTH_KEY_FILE": "/nowhere/root.key"}
    assert SessionStore().decode(old) == {}
    with pytest.raises(KeySourceError):
        SessionStore().decode(present)
