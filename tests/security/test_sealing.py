"""Sealed values open only for their own purpose, with their own root key, and unchanged."""

from __future__ import annotations

from pathlib import Path

import pytest
from django.core import serializers
from django.db import connection
from hypothesis import given
from hypothesis import strategies as st
from pytest_django import Settings

from notifications.models import Mail
from security.errors import KeyFileError, UnsealError
from security.sealing import seal, unseal
from security.sources.keyfile import ensure_root_key


@given(st.binary(max_size=300))
def test_it_works(plaintext: bytes) -> None:
    assert unseal(seal(plaintext, "one"), "one") == plaintext


def test_the_same_text_is_never_sealed_to_the_same_bytes() -> None:
    assert seal(b"secret", "one") != seal(b"secret", "one")


def test_another_purpose_cannot_open_it() -> None:
    with pytest.raises(UnsealError, match="two"):
        unseal(seal(b"secret", "one"), "two")


@given(st.data())
def test_any_changed_or_missing_byte_is_found(data: st.DataObject) -> None:
    sealed = bytearray(seal(b"a secret of some length", "one"))
    place = data.draw(st.integers(0, len(sealed) - 1))
    if data.draw(st.booleans()):
        sealed[place] ^= data.draw(st.integers(1, 255))
    else:
        del sealed[place:]
    with pytest.raises(UnsealError):
        unseal(bytes(sealed), "one")


def test_another_root_key_cannot_open_it(tmp_path: Path, settings: Settings) -> None:
    sealed = seal(b"secret", "one")
    other = tmp_path / "keys" / "other.key"
    ensure_root_key(other)
    settings.HEARTH = {**settings.HEARTH, "HEARTH_KEY_FILE": str(other)}
    with pytest.raises(UnsealError):
        unseal(sealed, "one")


def test_the_root_key_is_made_once_and_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "root.key"
    ensure_root_key(path)
    first = path.read_bytes()
    ensure_root_key(path)
    assert path.read_bytes() == first
    assert len(first) == 32
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [("open", "chmod 600"), ("short", "not 32"), ("missing", "can't be read")],
)
def test_an_unusable_root_key_is_refused_with_what_to_do(
    damage: str, sentence: str, tmp_path: Path, settings: Settings
) -> None:
    path = tmp_path / "root.key"
    ensure_root_key(path)
    if damage == "open":
        path.chmod(0o640)
    elif damage == "short":
        path.write_bytes(b"short")
    else:
        path.unlink()
    settings.HEARTH = {**settings.HEARTH, "HEARTH_KEY_FILE": str(path)}
    with pytest.raises(KeyFileError, match=sentence):
        seal(b"secret", "one")


@pytest.mark.django_db
def test_a_sealed_column_is_plain_in_python_and_sealed_in_the_database() -> None:
    mail = Mail.objects.create(recipient="alice@example.org", subject="Hello", text="a one-time link")
    assert Mail.objects.get(pk=mail.pk).text == "a one-time link"
    with connection.cursor() as cursor:
        cursor.execute("SELECT text FROM notifications_mail")
        raw = bytes(cursor.fetchone()[0])
    assert b"one-time" not in raw


@pytest.mark.django_db
def test_a_secret_is_never_serialised() -> None:
    mail = Mail.objects.create(recipient="alice@example.org", subject="Hello", text="a one-time link")
    with pytest.raises(TypeError, match="a secret and is never"):
        serializers.serialize("json", [mail])
