"""Both key sources keep one contract; then what is special to each."""

from __future__ import annotations

import multiprocessing
import os
import pickle
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis
from hypothesis import strategies as st

from security.errors import HsmError, KeyFileError, KeySourceError, UnknownRootKey, WrongKey
from security.secret import Key
from security.sources.base import KeySource
from security.sources.keyfile import KeyFileSource
from tests.security.softhsm import PIN, Hsm

FIXTURES = [HealthCheck.function_scoped_fixture]


@pytest.fixture(params=["file", "hsm"])
def source(request: pytest.FixtureRequest, key_file: Path) -> KeySource:
    return KeyFileSource(key_file) if request.param == "file" else request.getfixturevalue("hsm").source()


def test_it_works(source: KeySource) -> None:
    root, key = source.create(), Key.fresh()
    wrapped = source.wrap(root, key, b"for alice")
    assert source.unwrap(root, wrapped, b"for alice").value == key.value
    assert bytes(key.value) not in wrapped
    assert root in source.roots()
    assert root.startswith(source.kind + ":")


def test_another_purpose_does_not_open_it(source: KeySource) -> None:
    root = source.create()
    wrapped = source.wrap(root, Key.fresh(), b"for alice")
    with pytest.raises(WrongKey, match=root):
        source.unwrap(root, wrapped, b"for bob")
    source.unwrap(root, wrapped, b"for alice")


def test_another_root_key_does_not_open_it(source: KeySource) -> None:
    one, two = source.create(), source.create()
    assert {one, two} <= set(source.roots())
    with pytest.raises(WrongKey):
        source.unwrap(two, source.wrap(one, Key.fresh(), b""), b"")


@given(st.data())
@hypothesis(suppress_health_check=FIXTURES, max_examples=60, deadline=None)
def test_any_changed_or_missing_byte_is_found(source: KeySource, data: st.DataObject) -> None:
    root = (source.roots() or [source.create()])[0]
    wrapped = bytearray(source.wrap(root, Key.fresh(), b"a"))
    place = data.draw(st.integers(0, len(wrapped) - 1))
    if data.draw(st.booleans()):
        wrapped[place] ^= data.draw(st.integers(1, 255))
    else:
        del wrapped[place:]
    with pytest.raises(WrongKey):
        source.unwrap(root, bytes(wrapped), b"a")


def test_a_root_key_that_is_nowhere(source: KeySource) -> None:
    source.create()
    with pytest.raises(UnknownRootKey, match="0011223344556677"):
        source.wrap(f"{source.kind}:0011223344556677", Key.fresh(), b"")


def test_nobody_reads_a_secret_in_a_description(source: KeySource) -> None:
    shown = repr(source.describe()) + repr(source)
    assert source.describe()["kind"] == source.kind
    assert PIN not in shown


def test_keys_are_not_shown_pickled_or_used_after_wiping() -> None:
    with Key.fresh() as key:
        memory, copy = key.value, key.copy()
        assert memory.hex() not in repr(key)
        with pytest.raises(TypeError):
            pickle.dumps(key)
    assert bytes(memory) == bytes(32) != bytes(copy.value)
    key.wipe()
    with pytest.raises(ValueError, match="wiped"):
        key.value  # noqa: B018 (reading it is the test)
    with pytest.raises(ValueError, match="32 bytes"):
        Key(b"short")


def test_a_key_file_is_its_owners_alone(key_file: Path) -> None:
    source = KeyFileSource(key_file)
    assert source.roots() == []
    root = source.create()
    assert (key_file.stat().st_mode & 0o777, key_file.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    assert source.file_of(root) == key_file
    key_file.chmod(0o640)
    with pytest.raises(KeyFileError, match="chmod 600"):
        source.roots()


def test_a_damaged_key_file(key_file: Path) -> None:
    source = KeyFileSource(key_file)
    root = source.create()
    key_file.write_bytes(b"short")
    with pytest.raises(KeyFileError, match="5 bytes"):
        source.wrap(root, Key.fresh(), b"")
    key_file.unlink()
    key_file.mkdir(mode=0o700)
    with pytest.raises(KeyFileError, match="can't be read"):
        source.roots()


def test_the_root_key_in_the_hsm_never_leaves_it(hsm: Hsm) -> None:
    import pkcs11  # noqa: PLC0415 (needs the token's environment)
    from pkcs11 import Attribute  # noqa: PLC0415

    source = hsm.source()
    identity = bytes.fromhex(source.create().partition(":")[2])
    (key,) = source._session.get_objects({Attribute.ID: identity})
    wanted = {"SENSITIVE": 1, "ALWAYS_SENSITIVE": 1, "NEVER_EXTRACTABLE": 1, "LOCAL": 1, "PRIVATE": 1}
    wanted |= {"EXTRACTABLE": 0, "WRAP": 0, "UNWRAP": 0, "DERIVE": 0, "SIGN": 0}
    assert {name: int(key[Attribute[name]]) for name in wanted} == wanted
    with pytest.raises(pkcs11.exceptions.AttributeSensitive):
        key[Attribute.VALUE]


def test_a_lost_session_is_opened_again(hsm: Hsm) -> None:
    source = hsm.source()
    root, key = source.create(), Key.fresh()
    wrapped = source.wrap(root, key, b"")
    hsm.restart()
    assert source.unwrap(root, wrapped, b"").value == key.value


def test_an_hsm_that_goes_away_and_comes_back(hsm: Hsm) -> None:
    source = hsm.source()
    root, key = source.create(), Key.fresh()
    wrapped = source.wrap(root, key, b"")
    hsm.take_away()
    for call in (lambda: source.unwrap(root, wrapped, b""), lambda: source.wrap(root, key, b""), source.create):
        with pytest.raises(HsmError, match="Nothing was written") as caught:
            call()
        assert PIN not in str(caught.value)
    hsm.bring_back()
    assert source.unwrap(root, wrapped, b"").value == key.value


def test_the_token_can_be_named_by_its_slot(hsm: Hsm) -> None:
    import pkcs11  # noqa: PLC0415

    hsm.source().roots()
    (slot,) = [token.slot.slot_id for token in pkcs11.lib(str(hsm.module)).get_tokens(token_label=hsm.label)]
    source = hsm.source(token="", slot=slot)
    assert source.roots() == hsm.source().roots()
    assert source.describe()["slot"] == str(slot)
    with pytest.raises(HsmError, match="slot 4711"):
        hsm.source(token="", slot=4711).roots()


def test_a_wrong_pin_is_tried_once(hsm: Hsm, tmp_path: Path) -> None:
    pin = tmp_path / "pin"
    pin.touch(mode=0o600)
    pin.write_text("wrong")
    source = hsm.source(pin_file=pin)
    for reason in ("PinIncorrect", "refused before"):
        with pytest.raises(HsmError, match=reason):
            source.roots()
    pin.unlink()
    pin.touch(mode=0o600)
    pin.write_text(PIN)
    source.roots()


def test_a_pin_file_that_others_read_or_that_is_missing(hsm: Hsm, tmp_path: Path) -> None:
    source = hsm.source(pin_file=tmp_path / "pin")
    with pytest.raises(HsmError, match="can't be read"):
        source.roots()
    (tmp_path / "pin").write_text(PIN)
    (tmp_path / "pin").chmod(0o604)
    with pytest.raises(HsmError, match="chmod o="):
        source.roots()
    (tmp_path / "pin").chmod(0o600)
    (tmp_path / "pin").write_bytes(b"\xff1234")
    with pytest.raises(HsmError, match="not text"):
        source.roots()


def test_no_library_at_all(hsm: Hsm, tmp_path: Path) -> None:
    source = Hsm(hsm.folder, tmp_path / "nothing.so").source()
    with pytest.raises(KeySourceError, match=r"nothing\.so"):
        source.roots()


def _in_a_child(source: KeySource, root: str, wrapped: bytes, answer: object) -> None:
    answer.send(bytes(source.unwrap(root, wrapped, b"").value))  # type: ignore[attr-defined]
    os._exit(0)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_process_opens_a_session_of_its_own(hsm: Hsm) -> None:
    source, key = hsm.source(), Key.fresh()
    root = source.create()
    wrapped = source.wrap(root, key, b"")
    mine, theirs = multiprocessing.Pipe()
    child = multiprocessing.get_context("fork").Process(target=_in_a_child, args=(source, root, wrapped, theirs))
    child.start()
    assert mine.poll(20)
    assert mine.recv() == bytes(key.value)
    child.join(60)
    assert source.unwrap(root, wrapped, b"").value == key.value


def test_a_stray_file_beside_the_key_file_stops_nobody(key_file: Path) -> None:
    source = KeyFileSource(key_file)
    root, second = source.create(), source.create()
    (key_file.parent / "root-notes.key").write_text("see the safe")
    assert source.roots() == [root, second]
    wrapped = source.wrap(second, Key.fresh(), b"")
    source.unwrap(second, wrapped, b"").wipe()
    source.file_of(second).chmod(0o644)
    with pytest.raises(KeyFileError, match="can be read by others"):
        source.unwrap(second, wrapped, b"")
