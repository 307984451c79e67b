"""Whatever is not exactly what was encrypted for exactly this object: a typed error that names it, and no plaintext
that could be taken for whole."""

from __future__ import annotations

import dataclasses
import io
import itertools
import pickle
import traceback
import uuid
from collections.abc import Iterable

import pytest

from security.streams import (
    CHUNK_SIZE,
    HEADER_SIZE,
    SEALED_SIZE,
    Cipher,
    Context,
    Corrupted,
    DataKey,
    DecryptingReader,
    Header,
    Opener,
    Sealer,
    SeekableReader,
    StreamError,
    TooLong,
    Truncated,
    UnknownFormat,
    WrongContext,
    WrongKey,
    chunks,
    decrypt,
    encrypt,
)
from security.streams.header import Schedule, new_header
from tests.security.streams.samples import (
    ALICE,
    BOTH,
    KEY,
    READERS,
    Read,
    by_iterator,
    by_reader,
    by_seeking,
    parts,
    plaintext,
    stream,
)

pytestmark = pytest.mark.parametrize("cipher", BOTH)
readers = pytest.mark.parametrize("read", READERS.values(), ids=READERS)
IN_MEMORY = (by_iterator, by_reader, by_seeking)
SMALL = b"a small secret file"
THREE = plaintext(3 * CHUNK_SIZE + 7)


def refused(read: Read, whole: bytes, kind: type[StreamError], context: Context = ALICE, key: DataKey = KEY) -> None:
    with pytest.raises(kind) as caught:
        read(whole, key, context)
    assert type(caught.value) is kind
    assert caught.value.name == context.path
    assert context.path in str(caught.value)


def test_every_flipped_bit(cipher: Cipher) -> None:
    whole = stream(SMALL, cipher)
    for at, bit in itertools.product(range(len(whole)), range(8)):
        changed = bytearray(whole)
        changed[at] ^= 1 << bit
        for read in IN_MEMORY:
            with pytest.raises(StreamError) as caught:
                read(bytes(changed), KEY, ALICE)
            assert type(caught.value) is expected(at, caught.value)


def expected(at: int, error: StreamError) -> type[StreamError]:
    """Return the error for a changed byte at this place of the stream."""
    if at < 16:  # magic, version, cipher (the other one is known, but derives other keys), zero, chunk size
        return WrongKey if at == 9 and isinstance(error, WrongKey) else UnknownFormat
    if at < 96:  # key id, salt, commitment
        return WrongKey
    return WrongContext if at < HEADER_SIZE else Corrupted


@readers
def test_a_flipped_bit_in_any_chunk(read: Read, cipher: Cipher) -> None:
    whole = stream(THREE, cipher)
    for at in (HEADER_SIZE, HEADER_SIZE + SEALED_SIZE - 1, HEADER_SIZE + 2 * SEALED_SIZE + 5, len(whole) - 1):
        changed = bytearray(whole)
        changed[at] ^= 0x10
        refused(read, bytes(changed), Corrupted)


def test_cut_at_every_byte(cipher: Cipher) -> None:
    whole = stream(SMALL, cipher)
    for size, read in itertools.product(range(len(whole)), IN_MEMORY):
        # Within the final chunk nobody can tell a cut from a change.
        refused(read, whole[:size], Truncated if size < HEADER_SIZE + 16 else Corrupted)


@readers
@pytest.mark.parametrize("size", [0, 3 * CHUNK_SIZE, 3 * CHUNK_SIZE + 7])
def test_cut_exactly_between_chunks(read: Read, size: int, cipher: Cipher) -> None:
    header, sealed = parts(stream(THREE[:size], cipher))
    for count in range(len(sealed)):
        refused(read, header + b"".join(sealed[:count]), Truncated)


@readers
def test_cut_around_the_end_of_a_chunk(read: Read, cipher: Cipher) -> None:
    whole = stream(THREE, cipher)
    for off in (-17, -16, -1, 1, 15):
        kind = Truncated if off > 0 else Corrupted
        refused(read, whole[: HEADER_SIZE + 2 * SEALED_SIZE + off], kind)


@readers
def test_nothing_at_all(read: Read, cipher: Cipher) -> None:
    refused(read, b"", Truncated)
    refused(read, b"HEAR", Truncated)
    refused(read, b"PK\x03\x04", UnknownFormat)


@readers
def test_longer_than_it_was(read: Read, cipher: Cipher) -> None:
    for size in (0, 5, CHUNK_SIZE, 2 * CHUNK_SIZE - 1):
        whole = stream(THREE[:size], cipher)
        _, sealed = parts(whole)
        for more in (b"\0", sealed[-1], bytes(SEALED_SIZE), whole):
            longer = whole + more
            # Who looks at the end first may find no room for a final chunk there.
            no_end = read is by_seeking and (len(longer) - HEADER_SIZE) % SEALED_SIZE < 16
            refused(read, longer, Truncated if no_end else Corrupted)


@readers
@pytest.mark.parametrize(
    "order",
    [(1, 0, 2, 3), (0, 2, 1, 3), (0, 0, 1, 2, 3), (0, 1, 1, 3), (0, 2, 3), (1, 2, 3), (2, 2, 2, 3), (0, 1, 2, 2, 3)],
    ids=str,
)
def test_swapped_doubled_and_missing_chunks(read: Read, order: tuple[int, ...], cipher: Cipher) -> None:
    header, sealed = parts(stream(THREE, cipher))
    refused(read, header + b"".join(sealed[index] for index in order), Corrupted)


@readers
def test_the_final_chunk_elsewhere(read: Read, cipher: Cipher) -> None:
    header, sealed = parts(stream(THREE, cipher))
    refused(read, header + sealed[0] + sealed[3], Corrupted)
    refused(read, header + sealed[3], Corrupted)


@readers
def test_chunks_of_another_stream(read: Read, cipher: Cipher) -> None:
    """Same key, same names, same place: an older copy of the object, for example."""
    header, sealed = parts(stream(THREE, cipher))
    older_header, older = parts(stream(THREE, cipher))
    refused(read, header + sealed[0] + older[1] + b"".join(sealed[2:]), Corrupted)
    refused(read, header + b"".join(sealed[:3]) + older[3], Corrupted)
    refused(read, older_header + b"".join(sealed), Corrupted)


@readers
@pytest.mark.parametrize(
    "names",
    [
        {"organisation": "charlie"},
        {"server": "another"},
        {"server": ""},
        {"path": "media/ab/cd/other"},
        {"restore_point": "2026-11-22T10:00Z"},
        {"restore_point": ""},
    ],
    ids=str,
)
def test_an_object_of_somebody_else(read: Read, names: dict[str, str], cipher: Cipher) -> None:
    asked = dataclasses.replace(ALICE, **names)
    refused(read, stream(SMALL, cipher), WrongContext, context=asked)
    # The header of the object that was asked for does not help.
    header, _ = parts(stream(SMALL, cipher, context=asked))
    _, sealed = parts(stream(SMALL, cipher))
    refused(read, header + b"".join(sealed), Corrupted, context=asked)


@readers
def test_an_old_version_under_a_new_name(read: Read, cipher: Cipher) -> None:
    older = dataclasses.replace(ALICE, path="config/1")
    refused(read, stream(SMALL, cipher, context=older), WrongContext, dataclasses.replace(ALICE, path="config/2"))


@readers
def test_another_key(read: Read, cipher: Cipher) -> None:
    whole = stream(SMALL, cipher)
    refused(read, whole, WrongKey, key=DataKey.fresh())
    refused(read, whole, WrongKey, key=DataKey(KEY.id, bytes(32)))  # the right id, but another version's bytes
    refused(read, whole, WrongKey, key=DataKey(uuid.UUID(int=9), KEY.reveal()))  # the right bytes, another id
    named = whole[:16] + uuid.UUID(int=9).bytes + whole[32:]
    refused(read, named, WrongKey)
    refused(read, named, WrongKey, key=DataKey(uuid.UUID(int=9), KEY.reveal()))


@readers
@pytest.mark.parametrize(
    ("at", "value"),
    [
        (0, b"hearthst"),
        (8, b"\0"),
        (8, b"\2"),
        (9, b"\0"),
        (9, b"\3"),
        (10, b"\0\1"),
        (12, b"\0\0\0\0"),
        (12, b"\0\1\0\0"),
    ],
    ids=str,
)
def test_another_format(read: Read, at: int, value: bytes, cipher: Cipher) -> None:
    whole = stream(SMALL, cipher)
    refused(read, whole[:at] + value + whole[at + len(value) :], UnknownFormat)


@readers
def test_the_other_cipher(read: Read, cipher: Cipher) -> None:
    whole = stream(SMALL, cipher)
    refused(read, whole[:9] + bytes([3 - cipher]) + whole[10:], WrongKey)


def test_an_empty_final_chunk_cannot_be_added(cipher: Cipher) -> None:
    """Each length has exactly one number of chunks."""
    header, sealed = parts(stream(THREE[: 2 * CHUNK_SIZE], cipher))
    assert [len(each) for each in sealed] == [SEALED_SIZE, SEALED_SIZE, 16]
    refused(by_iterator, header + b"".join(sealed) + sealed[2], Corrupted)


def test_the_counter_does_not_overflow(cipher: Cipher) -> None:
    sealer = Sealer(KEY, ALICE, cipher)
    sealer._indexes = itertools.count(chunks.MAX_CHUNKS - 1)
    sealed = bytearray(SEALED_SIZE)
    sealer.seal_into(bytes(CHUNK_SIZE), sealed)
    for _ in range(2):
        with pytest.raises(TooLong, match=ALICE.path):
            sealer.seal_into(b"", bytearray(16))
    opener = Opener(Header.parse(sealer.header, ALICE.path), KEY, ALICE)
    plain = bytearray(b"x" * CHUNK_SIZE)
    opener.open_into(chunks.MAX_CHUNKS - 1, sealed, plain)
    assert plain == bytes(CHUNK_SIZE)
    with pytest.raises(TooLong, match=ALICE.path):
        opener.open_into(chunks.MAX_CHUNKS, sealed, plain)


@readers
def test_too_many_chunks(read: Read, cipher: Cipher, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = stream(THREE, cipher)
    monkeypatch.setattr(chunks, "MAX_CHUNKS", 3)
    refused(read, whole, TooLong)
    with pytest.raises(TooLong):
        list(encrypt([THREE], KEY, ALICE, cipher))
    assert read(stream(THREE[: 3 * CHUNK_SIZE - 1], cipher), KEY, ALICE) == THREE[: 3 * CHUNK_SIZE - 1]


def test_chunks_are_sealed_once_and_in_order(cipher: Cipher) -> None:
    sealer = Sealer(KEY, ALICE, cipher)
    with pytest.raises(ValueError, match="can't be encrypted"):
        sealer.seal_into(bytes(CHUNK_SIZE + 1), bytearray(SEALED_SIZE + 1))
    sealer.seal_into(b"", bytearray(16))
    with pytest.raises(ValueError, match="after the final one"):
        sealer.seal_into(b"", bytearray(16))


def test_what_fails_leaves_no_plaintext(cipher: Cipher) -> None:
    header, schedule = new_header(KEY, ALICE, cipher)
    assert schedule.commitment in header
    whole = bytearray(stream(SMALL, cipher))
    whole[-1] ^= 1
    opener = Opener(Header.parse(whole, "x"), KEY, ALICE)
    target = bytearray(b"?" * len(SMALL))
    with pytest.raises(Corrupted):
        opener.open_into(0, whole[HEADER_SIZE:], target)
    assert target == bytes(len(SMALL))


def collect(pieces: Iterable[bytes | memoryview | None], got: bytearray) -> None:
    for piece in pieces:
        got += piece or b""


def test_only_authentic_chunks_come_before_an_error(cipher: Cipher) -> None:
    header, sealed = parts(stream(THREE, cipher))
    got = bytearray()
    with pytest.raises(Truncated):
        collect(decrypt([header, *sealed[:2]], KEY, ALICE), got)
    assert got == THREE[: 2 * CHUNK_SIZE]


def test_an_error_is_not_followed_by_an_end(cipher: Cipher) -> None:
    header, sealed = parts(stream(THREE, cipher))
    reader = DecryptingReader(io.BytesIO(header + b"".join(sealed[:2])), KEY, ALICE)
    got = bytearray()
    for _ in range(3):
        with pytest.raises(Truncated):
            collect(iter(lambda: reader.read(300_000), b""), got)
        assert not reader.whole
    assert len(got) == 2 * CHUNK_SIZE
    with pytest.raises(Truncated):
        DecryptingReader(io.BytesIO(header + sealed[0]), KEY, ALICE).drain()


def test_a_source_that_shrinks_while_it_is_read(cipher: Cipher) -> None:
    source = io.BytesIO(stream(THREE, cipher))
    reader = SeekableReader(source, KEY, ALICE)
    source.truncate(HEADER_SIZE + SEALED_SIZE + 100)
    with pytest.raises(Truncated):
        reader.read()


def with_locals(error: BaseException) -> str:
    """Return the traceback as an error page would show it: with the local variables of our own frames."""
    frames = traceback.walk_tb(error.__traceback__)
    ours = (each for each in frames if "platform/security" in each[0].f_code.co_filename)
    return f"{traceback.StackSummary.extract(ours, capture_locals=True).format()} {error} {error!r}"


def test_errors_travel_and_keep_secrets(cipher: Cipher) -> None:
    whole = stream(SMALL, cipher)
    derived = Schedule(KEY, whole[32:64], whole[:32])._derived
    bad = [
        (whole[:50], ALICE, KEY),
        (whole[:-1], ALICE, KEY),
        (whole, dataclasses.replace(ALICE, path="x"), KEY),
        (whole[:40] + b"!" + whole[41:], ALICE, KEY),
        (whole, ALICE, DataKey(KEY.id, KEY.reveal()[::-1])),
    ]
    for (data, context, key), read in itertools.product(bad, READERS.values()):
        with pytest.raises(StreamError) as caught:
            read(data, key, context)
        shown = with_locals(caught.value)
        assert "context = Context(" in shown  # local variables were there to see
        for secret in (key.reveal(), KEY.reveal(), derived[32:64], derived[64:96], SMALL):
            assert secret.hex() not in shown
            assert repr(secret)[2:-1] not in shown
        again = pickle.loads(pickle.dumps(caught.value))  # noqa: S301 - our own, of this moment
        assert (type(again), str(again)) == (type(caught.value), str(caught.value))


def test_a_key_of_the_wrong_size_is_not_shown(cipher: Cipher) -> None:
    with pytest.raises(ValueError, match="32 bytes") as caught:
        DataKey(uuid.UUID(int=cipher), b"not to be seen\n")
    assert "key_id = " in with_locals(caught.value)
    assert "not to be seen" not in with_locals(caught.value)
