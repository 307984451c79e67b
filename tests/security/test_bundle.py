"""A key bundle brings back every data key in an empty database, and nothing else reads it."""

from __future__ import annotations

import struct
import uuid
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis
from hypothesis import strategies as st
from pytest_django import Settings

from audit.services import SYSTEM
from security.errors import BundleError, UnknownRootKey
from security.keyring import bundle, deks, keks, recovery, rewrap, roots
from security.keyring.deks import Context
from security.models import DataKey, KeyEncryptionKey, RootKey
from security.sealing import seal, unseal
from security.secret import Key
from tests.security.softhsm import Hsm

pytestmark = pytest.mark.django_db
PLACE = "region-one/keys"
OWNERS = [uuid.uuid4() for _ in range(3)]


def fill() -> dict[uuid.UUID, tuple[Context, bytes]]:
    made = {}
    for number in range(12):
        context = Context(
            OWNERS[number % 3], "backup.wal", uuid.UUID(int=number % 2) if number % 4 else None, f"{number}"
        )
        opened = deks.new_data_key(context)
        made[opened.id] = (context, bytes(opened.key.value))
        if number == 5:
            keks.rotate(SYSTEM, OWNERS[0])
            keks.rotate(SYSTEM, OWNERS[1], compromised=True)
    return made


def content() -> list[dict[str, object]]:
    """Return every row of the keyring."""
    models = (RootKey, KeyEncryptionKey, DataKey)
    rows: list[Any] = [row for model in models for row in model._default_manager.order_by("pk").values()]
    return [{name: bytes(v) if isinstance(v, memoryview) else v for name, v in row.items()} for row in rows]


def lose_the_database() -> None:
    """Empty the tables, below the guard that would refuse it."""
    from django.db import connection  # noqa: PLC0415 (used by this helper alone)

    with connection.cursor() as cursor:
        cursor.execute("set constraints all immediate")
        cursor.execute("truncate security_datakey, security_keyencryptionkey, security_rootkey")
    keks.cache.clear()
    deks.cache.clear()


def read(keys: dict[uuid.UUID, tuple[Context, bytes]]) -> bool:
    keks.cache.clear()
    return all(bytes(deks.open_data_key(name, context).value) == key for name, (context, key) in keys.items())


@pytest.mark.parametrize("kind", ["file", "hsm"])
def test_it_works(kind: str, hsm: Hsm, settings: Settings) -> None:
    settings.HEARTH = {**settings.HEARTH, **hsm.settings(), "HEARTH_KEY_SOURCE": kind}
    keys = fill()
    before = content()
    data = bundle.build(PLACE)
    lose_the_database()
    assert recovery.recover(SYSTEM, [bundle.parse(data, PLACE)]) == 12
    assert content() == before
    assert read(keys)
    rewrap.drive(per_second=1e6)
    assert read(keys)


def test_a_start_before_the_restore_spoils_nothing() -> None:
    keys = fill()
    old = seal(b"of before", "accounts.totp")
    root = roots.ensure_root()
    data = bundle.build(PLACE)
    lose_the_database()
    roots.rotate_root(SYSTEM)  # and even under another root key
    new = seal(b"of the first start", "accounts.totp")
    assert recovery.recover(SYSTEM, [bundle.parse(data, PLACE)]) == 13
    assert read(keys)
    deks.cache.clear()
    assert (unseal(old, "accounts.totp"), unseal(new, "accounts.totp")) == (b"of before", b"of the first start")
    assert seal(b"later", "accounts.totp")[1:17] == new[1:17]
    rewrap.drive(per_second=1e6)
    roots.move_keks(SYSTEM)
    assert RootKey.objects.get(pk=root.pk).state == RootKey.State.RETIRED
    deks.cache.clear()
    assert read(keys)
    assert unseal(old, "accounts.totp") == b"of before"
    with pytest.raises(BundleError, match="not empty"):
        recovery.recover(SYSTEM, [bundle.parse(data, PLACE)])


def test_a_root_rotation_in_the_middle_of_the_writing(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = fill()
    plain = bundle._plain
    turned: list[RootKey] = []

    def turn(row: dict[str, Any]) -> dict[str, Any]:
        if "purpose" in row and not turned:
            turned.append(roots.rotate_root(SYSTEM))
            roots.move_keks(SYSTEM)
        return plain(row)

    monkeypatch.setattr(bundle, "_plain", turn)
    data = bundle.build(PLACE)
    lose_the_database()
    recovery.recover(SYSTEM, [bundle.parse(data, PLACE)])
    assert read(keys)


def test_a_restored_owner_without_a_first_version_rotates() -> None:
    keks.rotate(SYSTEM, OWNERS[0])
    rewrap.drive(per_second=1e6)
    keks.destroy(SYSTEM, KeyEncryptionKey.objects.get(owner=OWNERS[0], version=1))
    data = bundle.build(PLACE)
    lose_the_database()
    recovery.recover(SYSTEM, [bundle.parse(data, PLACE)])
    assert keks.rotate(SYSTEM, OWNERS[0], compromised=True).version == 3


def test_one_that_could_not_be_read_again_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    fill()
    monkeypatch.setattr(bundle, "LARGEST_CONTENT", 100)
    with pytest.raises(BundleError, match="more than can be read again"):
        bundle.build(PLACE)


def test_no_key_is_readable_in_it() -> None:
    keys = fill()
    data = bundle.build(PLACE)
    assert not any(key in data for _, key in keys.values())
    assert not any(bytes(row.wrapped) in data or str(row.pk).encode() in data for row in DataKey.objects.all())


def test_one_owners_bundle_holds_their_keys_alone() -> None:
    fill()
    found = bundle.parse(bundle.build(PLACE, [OWNERS[0]]), PLACE)
    assert {row["owner"] for row in (*found.keks, *found.data_keys)} == {OWNERS[0]}
    assert len(found.data_keys) == 4


def test_it_belongs_to_its_place() -> None:
    fill()
    data = bundle.build(PLACE)
    with pytest.raises(BundleError, match="region-one"):
        bundle.parse(data, "region-two/keys")
    other = data.replace(PLACE.encode(), b"region-two/keys")
    with pytest.raises(BundleError, match="changed or cut off"):
        bundle.parse(other, "region-two/keys")


def test_a_keyring_with_keys_takes_no_bundle() -> None:
    keys = fill()
    data = bundle.parse(bundle.build(PLACE), PLACE)
    with pytest.raises(BundleError, match="not empty"):
        recovery.recover(SYSTEM, [data])
    assert read(keys)


@given(st.data())
@hypothesis(suppress_health_check=list(HealthCheck), max_examples=150, deadline=None)
def test_any_changed_or_missing_byte_is_found(data: st.DataObject) -> None:
    if not KeyEncryptionKey.objects.exists():
        fill()
    whole = bytearray(bundle.build(PLACE))
    place = data.draw(st.integers(0, min(len(whole) - 1, data.draw(st.sampled_from([450, len(whole) - 1])))))
    if data.draw(st.booleans()):
        whole[place] ^= data.draw(st.integers(1, 255))
    else:
        del whole[place:]
    with pytest.raises((BundleError, UnknownRootKey)):
        bundle.parse(bytes(whole), PLACE)


@pytest.mark.parametrize("junk", [b"", b"HKB1", b"HKB1" + struct.pack(">I", 2**31), b"HKB1\0\0\0\2[]", b"no bundle!"])
def test_something_else_is_no_bundle(junk: bytes) -> None:
    with pytest.raises(BundleError, match="not a key bundle"):
        bundle.parse(junk, PLACE)


def test_a_header_of_other_types_is_no_bundle() -> None:
    header = b'{"bundle":"%s","created":"2026-01-01T00:00:00+00:00","place":5,"root":"file:x","key":""}'
    header %= str(uuid.uuid4()).encode()
    with pytest.raises(BundleError, match="not a key bundle"):
        bundle.parse(b"HKB1" + struct.pack(">I", len(header)) + header, PLACE)


def test_a_version_made_while_it_is_built_is_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    fill()
    real, calls = bundle._plain, []

    def meddle(row: dict[str, object]) -> dict[str, object]:
        calls.append(row)
        if len(calls) == 1:
            keks.rotate(SYSTEM, OWNERS[2])
            deks.new_data_key(Context(OWNERS[2], "late"))
        return real(row)

    monkeypatch.setattr(bundle, "_plain", meddle)
    found = bundle.parse(bundle.build(PLACE), PLACE)
    assert len(found.data_keys) == 13
    assert {row["kek_id"] for row in found.data_keys} <= {row["id"] for row in found.keks}
    with Key.fresh() as key:
        assert repr(key) not in repr(found)
