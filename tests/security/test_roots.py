"""The move from the key file to the HSM, root rotation, and an HSM that goes away in the middle."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest
from pytest_django import Settings

from audit.models import AuditEvent
from audit.services import SYSTEM
from security.errors import HsmError, KeyInUse, KeysDamaged, UnknownRootKey
from security.keyring import deks, keks, roots
from security.keyring.deks import Context
from security.keyring.seams import seams
from security.models import KeyEncryptionKey, RootKey
from tests.security.softhsm import Hsm

pytestmark = pytest.mark.django_db


@pytest.fixture
def both(hsm: Hsm, settings: Settings) -> Hsm:
    """Both key sources are configured, as during a move."""
    settings.HEARTH = {**settings.HEARTH, **hsm.settings()}
    return hsm


def fill(count: int = 5) -> dict[uuid.UUID, tuple[Context, bytes]]:
    made = {}
    for _ in range(count):
        context = Context(uuid.uuid4(), "test")
        opened = deks.new_data_key(context)
        made[opened.id] = (context, bytes(opened.key.value))
    return made


def read(keys: dict[uuid.UUID, tuple[Context, bytes]]) -> bool:
    keks.cache.clear()
    return all(bytes(deks.open_data_key(name, context).value) == key for name, (context, key) in keys.items())


def test_the_move_to_the_hsm_without_downtime(both: Hsm) -> None:
    keys = fill()
    file = RootKey.objects.get()
    root = roots.rotate_root(SYSTEM, kind="hsm")
    keys |= fill(1)
    assert read(keys), "both roots can be read in the middle of the move"
    assert set(KeyEncryptionKey.objects.values_list("root_id", flat=True)) == {file.id, root.id}
    assert roots.move_keks(SYSTEM) == 5
    assert roots.move_keks(SYSTEM) == 0
    assert set(KeyEncryptionKey.objects.values_list("root_id", flat=True)) == {root.id}
    assert read(keys)
    file.refresh_from_db()
    assert file.state == "retired"
    assert AuditEvent.objects.filter(verb__in=["root.activate", "root.retire"]).count() == 3


def test_after_the_move_the_key_file_is_not_needed(both: Hsm, settings: Settings, tmp_path: Path) -> None:
    keys = fill()
    roots.rotate_root(SYSTEM, kind="hsm")
    roots.move_keks(SYSTEM)
    settings.HEARTH = {**settings.HEARTH, "HEARTH_KEY_FILE": str(tmp_path / "none.key")}
    assert read(keys | fill(1))


def test_the_hsm_goes_away_in_the_middle_of_the_move(both: Hsm, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = fill(6)
    root = roots.rotate_root(SYSTEM, kind="hsm")
    real, calls = roots.wrap, []

    def fragile(kek: KeyEncryptionKey, key: object) -> bytes:
        calls.append(kek)
        if len(calls) == 4:
            both.take_away()
        return real(kek, key)  # type: ignore[arg-type]  # passed on as it came

    monkeypatch.setattr(roots, "wrap", fragile)
    with pytest.raises(HsmError, match="Nothing was written"):
        roots.move_keks(SYSTEM)
    assert KeyEncryptionKey.objects.filter(root=root).count() == 3
    with pytest.raises(HsmError):
        read(keys)
    both.bring_back()
    assert read(keys)
    assert roots.move_keks(SYSTEM) == 3
    assert read(keys)


def test_damaged_keys_stop_no_other_and_are_all_named(both: Hsm) -> None:
    keys = fill(5)
    file = RootKey.objects.get()
    damaged = list(KeyEncryptionKey.objects.order_by("id"))[1:4:2]
    KeyEncryptionKey.objects.filter(pk__in=[kek.pk for kek in damaged]).update(wrapped=b"nonsense")
    root = roots.rotate_root(SYSTEM, kind="hsm")
    with pytest.raises(KeysDamaged, match="3 keys were moved") as fault:
        roots.move_keks(SYSTEM)
    assert all(str(kek.pk) in str(fault.value) for kek in damaged)
    assert KeyEncryptionKey.objects.filter(root=root).count() == 3
    file.refresh_from_db()
    assert file.state == "readable", "its root key is needed once the rows are restored"
    lost = {kek.owner for kek in damaged}
    assert read({name: kept for name, kept in keys.items() if kept[0].owner not in lost})


def test_a_new_organisation_while_the_hsm_is_away(both: Hsm) -> None:
    roots.rotate_root(SYSTEM, kind="hsm")
    both.take_away()
    with pytest.raises(HsmError):
        deks.new_data_key(Context(uuid.uuid4(), "test"))
    assert KeyEncryptionKey.objects.count() == 0
    both.bring_back()
    assert read(fill(1))


@pytest.mark.parametrize("kind", ["file", "hsm"])
def test_a_root_key_is_rotated(both: Hsm, kind: str, settings: Settings, tmp_path: Path) -> None:
    settings.HEARTH = {
        **settings.HEARTH,
        "HEARTH_KEY_SOURCE": kind,
        "HEARTH_KEY_FILE": str(tmp_path / "keys" / "root.key"),
    }
    keys = fill()
    first = RootKey.objects.get()
    second = roots.rotate_root(SYSTEM)
    assert (first.kind, second.kind) == (kind, kind)
    assert roots.move_keks(SYSTEM) == 5
    assert read(keys)
    assert {first.id, second.id} <= set(roots.source(kind).roots())


def test_a_root_that_a_bundle_needs_is_not_retired(both: Hsm, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(1)
    file = RootKey.objects.get()
    roots.rotate_root(SYSTEM, kind="hsm")
    monkeypatch.setattr(seams, "root_needed", [lambda *_: 1])
    roots.move_keks(SYSTEM)
    file.refresh_from_db()
    assert file.state == "readable"
    with pytest.raises(KeyInUse, match="1 others"):
        roots.retire(SYSTEM, file)


def test_an_hsm_that_is_not_configured(db: None) -> None:
    with pytest.raises(UnknownRootKey, match="HEARTH_HSM_MODULE"):
        roots.rotate_root(SYSTEM, kind="hsm")
    assert RootKey.objects.get().kind == "file"


def test_an_empty_database_takes_the_root_key_that_is_there(both: Hsm, settings: Settings) -> None:
    present = roots.source("hsm").roots() or [roots.source("hsm").create()]
    settings.HEARTH = {**settings.HEARTH, "HEARTH_KEY_SOURCE": "hsm"}
    assert roots.ensure_root().id == present[0]
    assert roots.ensure_root().id == present[0]
