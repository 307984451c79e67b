"""What was encrypted comes back, whole and the same, whichever way it is written and read."""

from __future__ import annotations

import copy
import io
import itertools
import pickle
import uuid
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from security.streams import (
    CHUNK_SIZE,
    HEADER_SIZE,
    BadContext,
    Cipher,
    Context,
    DataKey,
    EncryptingReader,
    EncryptingWriter,
    Header,
    decrypt,
    encrypt,
)
from tests.security.streams.samples import ALICE, BOTH, KEY, READERS, SIZES, Read, by_iterator, plaintext, stream


@pytest.mark.parametrize("cipher", BOTH)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
def test_it_works(read: Read, size: int, cipher: Cipher) -> None:
    data = plaintext(size)
    whole = stream(data, cipher)
    assert len(whole) == HEADER_SIZE + size + 16 * (size // CHUNK_SIZE + 1)
    assert read(whole, KEY, ALICE) == data


@pytest.mark.parametrize("cipher", BOTH)
@pytest.mark.parametrize("size", SIZES)
def test_all_ways_of_writing_make_the_same_format(size: int, cipher: Cipher) -> None:
    data = plaintext(size)
    sink = io.BytesIO()
    with EncryptingWriter(sink, KEY, ALICE, cipher) as writer:
        assert writer.write(data) == size
    assert by_iterator(sink.getvalue(), KEY, ALICE) == data
    assert by_iterator(EncryptingReader(io.BytesIO(data), KEY, ALICE, cipher).read(), KEY, ALICE) == data


def cut(data: bytes, at: list[int]) -> Iterator[bytes]:
    places = [0, *sorted(each % (len(data) + 1) for each in at), len(data)]
    return (data[start:end] for start, end in itertools.pairwise(places))


@given(
    size=st.sampled_from([0, 1, 15, 16, 1000, CHUNK_SIZE - 1, CHUNK_SIZE, CHUNK_SIZE + 1, 2 * CHUNK_SIZE + 5]),
    there=st.lists(st.integers(0, 3 * CHUNK_SIZE), max_size=6),
    back=st.lists(st.integers(0, 3 * CHUNK_SIZE), max_size=6),
    cipher=st.sampled_from(BOTH),
)
@settings(deadline=None, max_examples=60)
def test_pieces_may_be_cut_anywhere(size: int, there: list[int], back: list[int], cipher: Cipher) -> None:
    data = plaintext(size)
    whole = b"".join(bytes(piece) for piece in encrypt(cut(data, there), KEY, ALICE, cipher))
    assert b"".join(bytes(piece) for piece in decrypt(cut(whole, back), KEY, ALICE)) == data


def names(least: int) -> st.SearchStrategy[str]:
    return st.text(st.characters(exclude_categories=["Cs"]), min_size=least, max_size=16)


contexts = st.builds(Context, organisation=names(1), server=names(0), path=names(1), restore_point=names(0))


@given(contexts, st.binary(max_size=300), st.sampled_from(BOTH))
@settings(deadline=None, max_examples=100)
def test_any_names(context: Context, data: bytes, cipher: Cipher) -> None:
    assert by_iterator(stream(data, cipher, context=context), KEY, context) == data


def test_names_cannot_be_shifted_into_each_other() -> None:
    seen = {
        Context(organisation=organisation, server=server, path=path, restore_point=point).encode()
        for organisation, server, path, point in (
            ("ab", "c", "d", ""),
            ("a", "bc", "d", ""),
            ("a", "b", "cd", ""),
            ("a", "b", "c", "d"),
            ("a", "", "bcd", ""),
            ("a", "", "b", "cd"),
        )
    }
    assert len(seen) == 6


@pytest.mark.parametrize(
    ("names", "what"),
    [
        ({"organisation": ""}, "organisation"),
        ({"path": ""}, "path"),
        ({"organisation": "o" * 65}, "organisation"),
        ({"server": "é" * 33}, "server"),
        ({"restore_point": "r" * 65}, "restore point"),
        ({"path": "p" * 1025}, "path"),
        ({"path": "\udcff"}, "Unicode"),
    ],
)
def test_names_have_limits(names: dict[str, str], what: str) -> None:
    with pytest.raises(BadContext, match=what):
        Context(**{"organisation": "o", "path": "media/one", **names})
    Context(organisation="o" * 64, server="é" * 32, path="p" * 1024, restore_point="r" * 64)


def test_two_streams_of_the_same_are_different() -> None:
    one, two = (stream(b"the same", Cipher.AES_256_GCM) for _ in range(2))
    assert one[32:64] != two[32:64]
    assert one[HEADER_SIZE:] != two[HEADER_SIZE:]


def test_the_header_names_the_key_and_no_more() -> None:
    whole = stream(b"x", Cipher.AES_256_GCM)
    header = Header.parse(whole, "media/one")
    assert (header.key_id, header.cipher) == (KEY.id, Cipher.AES_256_GCM)
    for name in (ALICE.organisation, ALICE.server, ALICE.path, ALICE.restore_point):
        assert name.encode() not in whole
    asked: list[uuid.UUID] = []

    def find(key_id: uuid.UUID) -> DataKey:
        asked.append(key_id)
        return KEY

    assert b"".join(bytes(piece) for piece in decrypt([whole], find, ALICE)) == b"x"
    assert asked == [KEY.id]


def test_buffers_of_any_kind_and_used_again() -> None:
    buffer = bytearray(CHUNK_SIZE)

    def pieces() -> Iterator[bytearray]:
        for letter in b"abc":
            buffer[:] = bytes([letter]) * CHUNK_SIZE
            yield buffer
        buffer.clear()  # fails while somebody still holds it
        yield buffer

    whole = b"".join(bytes(piece) for piece in encrypt(pieces(), KEY, ALICE, Cipher.AES_256_GCM))
    assert by_iterator(whole, KEY, ALICE) == b"".join(bytes([letter]) * CHUNK_SIZE for letter in b"abc")


def test_a_view_kept_too_long_fails_loudly() -> None:
    kept = list(encrypt([bytes(2 * CHUNK_SIZE)], KEY, ALICE, Cipher.AES_256_GCM))
    with pytest.raises(ValueError, match="released"):
        bytes(kept[1])


def test_keys_show_and_send_nothing() -> None:
    key = DataKey.fresh()
    assert repr(key) == f"DataKey({key.id})"
    assert str(key) == repr(key)
    for send in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="never serialised"):
            send(key)
    with pytest.raises(ValueError, match="32 bytes"):
        DataKey(key.id, bytes(31))
