"""A recovery with nothing of the engine's own but its formats: fetch, decrypt, unpack, and PostgreSQL does the rest."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import TypeVar

import zstandard

from backups.engine import manifest, names
from backups.engine.manifest import Moment, Point
from backups.engine.objects import Vault
from backups.engine.stores.base import Store
from security.streams import DataKey
from tests.backups.clusters import Cluster, run

T = TypeVar("T", Point, Moment)
Opens = Callable[[uuid.UUID], DataKey]


class Restorer:
    """Reads the backups of one server."""

    def __init__(self, store: Store, organisation: str, server: str, opens: Opens) -> None:
        self.store = store
        self.vault = Vault(store=store, organisation=organisation, server=server)
        self.opens = opens

    def points(self) -> list[Point]:
        """All restore points, their seals checked."""
        return [self._read(each.name, Point) for each in self.store.listing(names.POINTS)]

    def moments(self, line: str) -> list[Moment]:
        """The line's chain of moments, in its order, every link checked."""
        found = [self._read(each.name, Moment) for each in self.store.listing(f"{names.LINES}{line}/moments/")]
        found.sort(key=lambda moment: moment.number)
        assert [moment.number for moment in found] == list(range(len(found)))
        return found

    def content(self, name: str, part_of: str) -> bytes:
        """An object's plaintext, decompressed."""
        packed = b"".join(map(bytes, self.vault.get(name, self.opens, part_of)))
        return zstandard.ZstdDecompressor().decompressobj().decompress(packed)

    def segments(self, line: str) -> dict[str, bytes]:
        """All WAL of a line that is in the store: whole segments, else what pieces there are without a gap."""
        found: dict[str, list[tuple[int, int, str]]] = {}
        for each in self.store.listing(f"{names.LINES}{line}/wal/"):
            piece = names.piece_of(each.name)
            if piece is not None:
                found.setdefault(piece[0], []).append((*piece[1:], each.name))
        return {segment: self._put_together(sorted(pieces), line) for segment, pieces in found.items()}

    def histories(self, line: str) -> dict[str, bytes]:
        """The history files of a line's timelines."""
        found = (each.name for each in self.store.listing(f"{names.LINES}{line}/wal/"))
        wanted = {name.rsplit("/", 1)[1].upper(): name for name in found if name.endswith(".history")}
        return {
            file.replace(".HISTORY", ".history"): b"".join(map(bytes, self.vault.get(name, self.opens, line)))
            for file, name in wanted.items()
        }

    def restore(self, point: Point, target: Cluster, *, until: str = "") -> Cluster:
        """Bring the point back into `target` and replay: to a time, else all there is. Returns it running."""
        target.data.mkdir(mode=0o700)
        target.own(target.folder)
        (target.folder / "base.tar").write_bytes(self.content(point.base.name, point.id))
        run(target.folder, "/bin/tar", "-xf", str(target.folder / "base.tar"), "-C", str(target.data))
        wal = target.folder / "wal"
        wal.mkdir()
        for segment, data in self.segments(point.line).items():
            (wal / segment).write_bytes(data.ljust(names.SEGMENT_SIZE, b"\0"))
        for name, data in self.histories(point.line).items():
            (wal / name).write_bytes(data)
        (target.data / "recovery.signal").touch()
        options = {"restore_command": f"cp {wal}/%f %p", "recovery_target_action": "promote"}
        options |= {"recovery_target_time": until} if until else {}
        lines = "".join(f"{key} = '{value}'\n" for key, value in options.items())
        (target.data / "postgresql.auto.conf").write_text(lines)
        target.own(target.folder)
        target.start()
        return target

    def _read(self, name: str, kind: type[T]) -> T:
        found = manifest.read(b"".join(self.store.get(name)), kind, name)
        manifest.check(found, self.opens, name)
        return found

    def _put_together(self, pieces: list[tuple[int, int, str]], line: str) -> bytes:
        for begin, end, name in pieces:
            if (begin, end) == (0, names.SEGMENT_SIZE):
                return self.content(name, line)
        data = b""
        for begin, end, name in pieces:
            if begin <= len(data) < end:
                data = data[:begin] + self.content(name, line)
        return data
