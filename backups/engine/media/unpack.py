"""Media back from the store: indexes put together, and objects taken apart into the contents in them. No Django.

For restores and for verification alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any
from uuid import UUID

import zstandard

from backups.engine.manifest import MediaRun
from backups.engine.media import index
from backups.engine.media.errors import MediaError
from backups.engine.media.index import Block, File, Head
from backups.engine.objects import Vault
from security.streams import DataKey

Opens = Callable[[UUID], DataKey]


def files(vault: Vault, opens: Opens, chain: Sequence[MediaRun]) -> dict[str, File]:
    """Return all files of a run by their paths. `chain` is `Catalogue.chain`: the newest first, a full one last.

    Raises `MediaError`, `StreamError`, `StoreError`. A million files take some 600 MB.
    """
    found: dict[str, File] = {}
    for run in reversed(chain):
        for block in blocks(vault, opens, run):
            found.update((each.path, each) for each in block.files)
            for path in block.gone:
                found.pop(path, None)
    newest = chain[0]
    if (len(found), sum(each.size for each in found.values())) != (newest.files, newest.bytes):
        raise MediaError(
            f"The media indexes up to {newest.id} don't give the {newest.files} files that its manifest tells of. Try "
            "another copy.",
            code="MediaDamaged",
        )
    return found


def blocks(vault: Vault, opens: Opens, run: MediaRun) -> Iterator[Block]:
    """Yield what one run's index tells, checked to be this run's. Raises as `files` does."""
    messages = index.read(vault.read(run.index, opens), run.index.name)
    before = run.previous.name.rsplit("/", 1)[-1] if run.previous else ""
    if next(messages) != Head(index.FORMAT, run.id, run.chain == 0, before):
        name = run.index.name
        raise MediaError(f"The media index {name} is another run's. Try another copy.", code="MediaDamaged")
    for block in messages:
        if isinstance(block, Block):
            yield block


def contents(
    pieces: Iterable[bytes | memoryview], wanted: Sequence[File], name: str
) -> Iterator[tuple[File, bytes | memoryview | None]]:
    """Yield the plain contents of `wanted` files in an object's plaintext, a piece at a time; None after each's last.

    `wanted` are of this object, sorted by `at`, none twice. A piece is valid until the next. Raises `MediaError`; what
    `pieces` raises passes through, and the object is read to its end.
    """
    place, rest = 0, iter(wanted)
    now, part = next(rest, None), _Part()
    for piece in pieces:
        view = memoryview(piece)
        while now is not None and now.at < place + len(view):
            begin, end = max(now.at - place, 0), min(now.at + now.length - place, len(view))
            if end > begin and (data := part.take(now, view[begin:end], name)):
                yield now, data
            if now.at + now.length > place + len(view):
                break
            part.finish(now, name)
            yield now, None
            now, part = next(rest, None), _Part()
        place += len(view)
    if now is not None:
        raise _wrong(name, now, "the object is shorter")


class _Part:
    """One file's stretch of an object."""

    def __init__(self) -> None:
        self._size = 0
        self._unpacker: Any = None

    def take(self, file: File, data: memoryview, name: str) -> bytes | memoryview:
        if file.packed and self._unpacker is None:
            self._unpacker = zstandard.ZstdDecompressor(max_window_size=1 << 27).decompressobj()
        try:
            found = self._unpacker.decompress(bytes(data)) if file.packed else data
        except zstandard.ZstdError as error:
            raise _wrong(name, file, str(error)) from None
        self._size += len(found)
        if self._size > file.size:
            raise _wrong(name, file, "it is larger than the index says")
        return found

    def finish(self, file: File, name: str) -> None:
        if self._size != file.size or (file.packed and not (self._unpacker and self._unpacker.eof)):
            raise _wrong(name, file, "its size is not what the index says")


def _wrong(name: str, file: File, why: str) -> MediaError:
    return MediaError(f"{file.path} in {name} is not right: {why}. Try another copy.", code="MediaDamaged")
