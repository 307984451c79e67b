"""File objects and paths: what they promise to whoever treats them as ordinary files."""

from __future__ import annotations

import gc
import io
import os
import re
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest

from security.streams import (
    CHUNK_SIZE,
    HEADER_SIZE,
    SEALED_SIZE,
    Cipher,
    Corrupted,
    DecryptingReader,
    EncryptingReader,
    EncryptingWriter,
    SeekableReader,
    Truncated,
    Unfinished,
    decrypt_to_path,
    encrypt_to_path,
)
from security.streams.pieces import FileSource, Loan, write_all
from tests.security.streams.samples import ALICE, KEY, by_iterator, plaintext, stream

GCM = Cipher.AES_256_GCM
DATA = plaintext(2 * CHUNK_SIZE + 999)


class Grudging(io.RawIOBase):
    """A raw file that takes and gives only a part of what is asked; `broken` after so many bytes."""

    def __init__(self, data: bytes = b"", broken: int = 1 << 40) -> None:
        self.inner, self.broken = io.BytesIO(data), broken

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        if self.inner.tell() > self.broken:
            raise OSError("The disk is full.")
        return self.inner.write(bytes(data[:70_000]))

    def readinto(self, target: Any, /) -> int:
        if self.inner.tell() > self.broken:
            raise OSError("The disk is gone.")
        return self.inner.readinto(target[:70_000])


class OnlyRead:
    """A file with nothing but `read`, such as some download clients give."""

    def __init__(self, data: bytes) -> None:
        self.inner = io.BytesIO(data)

    def read(self, size: int, /) -> bytes:
        return self.inner.read(min(size, 50_000))


class NonBlocking:
    def read(self, _: int, /) -> None:
        return None

    def write(self, _: Any, /) -> None:
        return None


# Writing


def test_many_small_writes() -> None:
    sink = io.BytesIO()
    with EncryptingWriter(sink, KEY, ALICE, GCM) as writer:
        assert writer.writable()
        assert not writer.readable()
        for at in range(0, len(DATA), 77_777):
            writer.write(DATA[at : at + 77_777])
    assert by_iterator(sink.getvalue(), KEY, ALICE) == DATA
    assert not sink.closed


def test_an_error_in_the_block_leaves_no_whole_stream() -> None:
    sink = io.BytesIO()
    with pytest.raises(ZeroDivisionError), EncryptingWriter(sink, KEY, ALICE, GCM) as writer:  # noqa: PT012
        writer.write(DATA)
        raise ZeroDivisionError
    with pytest.raises(Truncated):
        by_iterator(sink.getvalue(), KEY, ALICE)


def test_closing_is_not_finishing() -> None:
    sink = io.BytesIO()
    writer = EncryptingWriter(sink, KEY, ALICE, GCM)
    writer.write(b"a part")
    with pytest.raises(Unfinished, match=ALICE.path):
        writer.close()
    writer.close()
    with pytest.raises(Truncated):
        by_iterator(sink.getvalue(), KEY, ALICE)


def test_a_forgotten_writer_finishes_nothing() -> None:
    sink, below = io.BytesIO(), io.BytesIO()
    EncryptingWriter(sink, KEY, ALICE, GCM).write(b"a part")
    io.BufferedWriter(EncryptingWriter(below, KEY, ALICE, GCM)).write(b"a part")
    gc.collect()
    for each in (sink, below):
        with pytest.raises(Truncated):
            by_iterator(each.getvalue(), KEY, ALICE)


def test_finish_and_abort() -> None:
    sink = io.BytesIO()
    with EncryptingWriter(sink, KEY, ALICE, GCM) as writer:
        writer.write(b"all")
        writer.finish()
        with pytest.raises(ValueError, match="nothing more"):
            writer.write(b"more")
        with pytest.raises(ValueError, match="nothing more"):
            writer.finish()
    assert by_iterator(sink.getvalue(), KEY, ALICE) == b"all"
    aborted = io.BytesIO()
    writer = EncryptingWriter(aborted, KEY, ALICE, GCM)
    writer.abort()
    writer.close()
    assert len(aborted.getvalue()) == HEADER_SIZE


def test_a_full_disk_ends_the_stream_for_good() -> None:
    sink = Grudging(broken=CHUNK_SIZE // 2)
    writer = EncryptingWriter(sink, KEY, ALICE, GCM)
    with pytest.raises(OSError, match="full"):
        writer.write(DATA)
    with pytest.raises(ValueError, match="failed"):
        writer.finish()
    writer.close()
    with pytest.raises(OSError, match="full"):
        EncryptingWriter(Grudging(broken=-1), KEY, ALICE, GCM)


def test_a_stream_too_long_ends_for_good(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("security.streams.chunks.MAX_CHUNKS", 2)
    writer = EncryptingWriter(io.BytesIO(), KEY, ALICE, GCM)
    writer.write(bytes(2 * CHUNK_SIZE))
    with pytest.raises(Exception, match="more than 2 chunks"):
        writer.finish()
    with pytest.raises(ValueError, match="failed"):
        writer.finish()


def test_files_that_take_and_give_little() -> None:
    sink = Grudging()
    with EncryptingWriter(sink, KEY, ALICE, GCM) as writer:
        writer.write(DATA)
    whole = sink.inner.getvalue()
    assert DecryptingReader(Grudging(whole), KEY, ALICE).read() == DATA
    assert DecryptingReader(OnlyRead(whole), KEY, ALICE).read() == DATA


def test_files_that_do_not_block_are_refused() -> None:
    with pytest.raises(BlockingIOError):
        FileSource(NonBlocking()).take(1)
    with pytest.raises(BlockingIOError):
        write_all(NonBlocking(), memoryview(b"x"))


# Reading


def test_a_tar_through_both() -> None:
    sink = io.BytesIO()
    with EncryptingWriter(sink, KEY, ALICE, GCM) as writer, tarfile.open(fileobj=writer, mode="w|") as tar:
        entry = tarfile.TarInfo("media/one")
        entry.size = len(DATA)
        tar.addfile(entry, io.BytesIO(DATA))
    reader = DecryptingReader(io.BytesIO(sink.getvalue()), KEY, ALICE)
    with tarfile.open(fileobj=reader, mode="r|") as tar:
        member = tar.next()
        assert member is not None
        content = tar.extractfile(member)
        assert content is not None
        assert content.read() == DATA
    reader.drain()
    assert reader.whole
    assert reader.read(1) == b""


def test_a_reader_is_a_file() -> None:
    whole = stream(DATA, GCM)
    with DecryptingReader(io.BytesIO(whole), KEY, ALICE) as reader:
        assert reader.readable()
        assert not reader.seekable()
        assert reader.read(0) == b""
        assert reader.read(5) == DATA[:5]
        assert io.BufferedReader(reader).read() == DATA[5:]
    with pytest.raises(ValueError, match="closed"):
        reader.readinto(bytearray(1))
    copy = io.BytesIO()
    shutil.copyfileobj(EncryptingReader(io.BytesIO(DATA), KEY, ALICE, GCM), copy)
    assert by_iterator(copy.getvalue(), KEY, ALICE) == DATA


def test_an_error_of_the_source_stays() -> None:
    reader = DecryptingReader(Grudging(stream(DATA, GCM), broken=CHUNK_SIZE), KEY, ALICE)
    for _ in range(2):
        with pytest.raises(OSError, match="gone"):
            reader.read()


class Counting(io.BytesIO):
    read_bytes = 0

    def readinto(self, target: Any, /) -> int:
        count = super().readinto(target)
        self.read_bytes += count
        return count


def test_single_chunks_and_ranges() -> None:
    source = Counting(stream(DATA, GCM))
    reader = SeekableReader(source, KEY, ALICE)
    assert (reader.length, reader.tell()) == (len(DATA), 0)
    assert reader.readable()
    assert reader.seekable()
    opened = source.read_bytes
    assert opened == HEADER_SIZE + 999 + 16
    assert bytes(reader.chunk(1)) == DATA[CHUNK_SIZE : 2 * CHUNK_SIZE]
    assert source.read_bytes - opened == SEALED_SIZE
    assert bytes(reader.chunk(2)) == DATA[2 * CHUNK_SIZE :]
    for index in (-1, 3):
        with pytest.raises(IndexError):
            reader.chunk(index)
    for start, size in ((0, 10), (CHUNK_SIZE - 5, 10), (2 * CHUNK_SIZE + 990, 100), (len(DATA), 5), (len(DATA) + 9, 5)):
        assert reader.seek(start) == start
        got = bytearray()
        while piece := reader.read(size - len(got)):
            got += piece
        assert got == DATA[start : start + size]
    assert reader.seek(-9, os.SEEK_END) == len(DATA) - 9
    assert reader.seek(4, os.SEEK_CUR) == len(DATA) - 5
    assert reader.read() == DATA[-5:]
    assert reader.read(0) == b""
    with pytest.raises(ValueError, match="before the start"):
        reader.seek(-1)
    reader.close()
    with pytest.raises(ValueError, match="closed"):
        reader.read(1)


def test_a_bad_chunk_spoils_only_its_own_range() -> None:
    whole = bytearray(stream(DATA, GCM))
    whole[HEADER_SIZE + 3] ^= 1
    reader = SeekableReader(io.BytesIO(bytes(whole)), KEY, ALICE)
    reader.seek(CHUNK_SIZE)
    assert reader.read(4) == DATA[CHUNK_SIZE : CHUNK_SIZE + 4]
    for _ in range(2):
        with pytest.raises(Corrupted, match="chunk 0"):
            reader.chunk(0)


def test_a_buffer_in_use_is_left_to_its_user() -> None:
    loan = Loan(4)
    lent = loan.lend(4)
    lent[:] = b"kept"
    using = re.finditer(b".", lent)  # holds the buffer, as a system call in another thread would
    loan.lend(4)[:] = b"next"
    assert [match.group() for match in using] == [b"k", b"e", b"p", b"t"]


# Paths


def test_paths(tmp_path: Path) -> None:
    there, back = tmp_path / "object", tmp_path / "restored"
    size = encrypt_to_path(io.BytesIO(DATA), there, KEY, ALICE, GCM)
    assert size == there.stat().st_size
    with there.open("rb") as file:
        assert decrypt_to_path(file, back, lambda _: KEY, ALICE) == len(DATA)
    assert back.read_bytes() == DATA
    assert back.stat().st_mode & 0o777 == 0o600
    assert sorted(tmp_path.iterdir()) == [there, back]


def test_a_bad_stream_leaves_what_was_there(tmp_path: Path) -> None:
    target = tmp_path / "restored"
    target.write_bytes(b"what was there before")
    whole = stream(DATA, GCM)
    for bad in (whole[:-1], whole[: HEADER_SIZE + SEALED_SIZE], whole[:10]):
        with pytest.raises((Truncated, Corrupted)):
            decrypt_to_path(io.BytesIO(bad), target, KEY, ALICE)
        with pytest.raises(OSError, match="gone"):
            encrypt_to_path(Grudging(DATA, broken=5), target, KEY, ALICE, GCM)
        assert list(tmp_path.iterdir()) == [target]
        assert target.read_bytes() == b"what was there before"


def test_the_unfinished_file_may_be_gone_already(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Sweeping(io.BytesIO):
        def readinto(self, target: Any, /) -> int:
            for each in tmp_path.iterdir():
                each.unlink()
            return super().readinto(target)

    with pytest.raises(FileNotFoundError):
        decrypt_to_path(Sweeping(stream(b"x", GCM)), tmp_path / "restored", KEY, ALICE)
    assert list(tmp_path.iterdir()) == []
