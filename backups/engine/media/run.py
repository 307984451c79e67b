"""A media run: what is new goes into the store, an index of what changed, and last a manifest. Imports no Django.

    media = Media(vault=vault, source=DiskSource(folder), state=folder, name_key=32 bytes, key=fresh key for a run's id)
    media.run(at=database's now).ref        # for a moment
    media.run(at=..., full=True).ref        # for a restore point: an index of all files

Begin it after the LSN was read: Synapse stores a file before its row, so every row before that LSN has its file. A run
that finds nothing new stores nothing. It is killed anywhere without harm: what no manifest names is swept after days.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import groupby
from pathlib import Path
from typing import cast

from backups.engine import manifest, names
from backups.engine.manifest import ManifestError, MediaRun, Packed, Packs, Ref
from backups.engine.media import index
from backups.engine.media.errors import MediaError
from backups.engine.media.packs import Packer, Stored
from backups.engine.media.scan import Group, Look, Seen, Source
from backups.engine.media.state import Run, State, known_group, packed_group
from backups.engine.objects import FILES, Vault
from backups.engine.progress import Progress
from backups.engine.stores.base import NoSuchObject
from security.streams import DataKey, StreamError

MOST_CHAIN = 96
"""Indexes of changes between two full ones; also no more bytes of them than a full one has."""
BATCH_BYTES = 4 * 2**30
BATCH_FILES = 20_000
"""What a long run stores before it writes down how far it is."""
_EVERY = 300


@dataclass(frozen=True, kw_only=True)
class MediaResult:
    """What there is, and what a run did. Bytes."""

    ref: Ref
    """The manifest of the newest whole run."""
    files: int
    bytes: int
    new_bytes: int = 0
    """Put into the store, encrypted."""
    stored: bool = False
    """Whether there is a new manifest."""
    left_out: int = 0
    """Links, pipes and the like in the folders that were looked at."""
    unread: dict[str, str] = field(default_factory=dict)
    """Files that the disk did not give, and why; as they were before, they are still in the index."""


@dataclass
class _Batch:
    """What was found changed, up to some bytes or files."""

    groups: dict[str, Group | None] = field(default_factory=dict)
    changed: list[tuple[str, Seen]] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)
    bytes: int = 0
    left_out: int = 0

    @property
    def is_large(self) -> bool:
        return self.bytes >= BATCH_BYTES or len(self.changed) + len(self.gone) >= BATCH_FILES


@dataclass(kw_only=True)
class Media:
    """One server's media and where they go. Its runs are called by one thread at a time."""

    vault: Vault
    source: Source
    state: Path
    name_key: bytes
    key: Callable[[str], DataKey]
    """Gives the data key of a run, published (decision 19). Asked only when there is something to store."""
    uploads: int = 3
    stopped: Callable[[], bool] = lambda: False
    progress: Progress | None = None

    def __post_init__(self) -> None:
        self._checked = False

    def run(self, *, at: datetime | None = None, full: bool = False, close: bool = False) -> MediaResult:
        """Store what is new. `at` is the database's time before it began; with `close` every file is looked at.

        Raises `MediaError`, `StoreError`, `Stopped`, and what `key` raises. Whatever it raises, the next run goes on.
        """
        identity = f"{self.vault.organisation}/{self.vault.server}/{self.vault.store.name}"
        for again in (True, False):
            state = State(self.state, identity)
            try:
                self._resume(state)
                found = _Running(self, state, at or datetime.now(UTC), full=full, close=close).run()
                self._tell(found)
                return found
            except sqlite3.DatabaseError as error:
                self._checked = False
                if not again or isinstance(error, sqlite3.OperationalError):
                    raise MediaError(
                        f"The state of media backups in {self.state} can't be used: {error}. New media are not backed "
                        "up until it can. Is the disk full?",
                        code="StateAway",
                    ) from None
                state.remove()
            finally:
                state.close()
        raise AssertionError

    def forget(self, objects: list[str]) -> int:
        """Let the next run store anew what lies in these objects, which are lost or damaged. Return how many files."""
        state = State(self.state, f"{self.vault.organisation}/{self.vault.server}/{self.vault.store.name}")
        try:
            return state.forget(objects)
        finally:
            state.close()

    def _tell(self, found: MediaResult) -> None:
        if self.progress is not None and (found.stored or found.unread):
            self.progress.say(
                "media",
                run=found.ref.part_of,
                files=found.files,
                bytes=found.bytes,
                new_bytes=found.new_bytes,
                left_out=found.left_out,
                unread=len(found.unread),
                why=next(iter(found.unread.values()), ""),
            )

    def _resume(self, state: State) -> None:
        """Make sure that the state is of the newest run in the store, or begin with what the store tells."""
        last = state.run
        if self._checked and last is not None:
            try:
                self.vault.store.head(last.ref.name)
            except NoSuchObject:
                self._checked = False
        if self._checked:
            return
        newest, is_there = "", False
        for each in self.vault.store.listing(names.MEDIA_RUNS):
            newest = each.name
            is_there |= last is not None and each.name == last.ref.name
        mine = {names.media_run(last.id) if last else "", names.media_run(state.meta("pending"))}
        if last is None or not is_there or newest not in mine:
            # Lost, brought back from an older disk, or of a store that lost it.
            state.reset()
            state.set_meta("newest", newest.rsplit("/", 1)[-1])
            self._recall(state, newest)
        self._checked = True

    def _recall(self, state: State, name: str) -> None:
        """Learn from the last full run which contents are stored. Where that can't be read they are stored again."""
        try:
            found = self._full(name) if name else None
            if found is None or found.known is None:
                return
            key = index.known_key(self.name_key)
            pieces = self.vault.get(found.known.name, lambda _: key, found.id)
            with state.changing():
                for objects, contents in index.read_known(pieces, found.known.name):
                    state.add(objects, contents)
        except (ManifestError, StreamError, MediaError, NoSuchObject):
            return

    def _full(self, name: str) -> MediaRun | None:
        for _ in range(2 * MOST_CHAIN + 1000):
            found = manifest.read(b"".join(self.vault.store.get(name)), MediaRun, name)
            if found.chain == 0 or found.previous is None:
                return found if found.chain == 0 else None
            name = found.previous.name
        return None


class _Running:
    """One run, in one or more batches."""

    def __init__(self, media: Media, state: State, at: datetime, *, full: bool, close: bool) -> None:
        self._media = media
        self._state = state
        self._at = at
        self._full = full
        self._turn = -1 if close else int(time.time() // _EVERY)
        self._known = state.groups()
        self._new_bytes = 0
        self._left_out = 0
        self._stored = False
        self._unread: dict[str, str] = {}

    def run(self) -> MediaResult:
        batch, seen = _Batch(), set[str]()
        for found in self._media.source.scan(lambda name: known_group(self._known.get(name)), self._turn):
            if isinstance(found, str):
                seen.add(found)
                continue
            seen.add(found.name)
            self._look(batch, found)
            if batch.is_large:
                self._finish(batch, whole=False)
                batch = _Batch()
        if self._known and not seen:
            raise MediaError(
                "The media folder is empty, and it was not at the last run. Nothing was changed: what is stored stays, "
                "with its index. Is its volume mounted?"
            )
        for name in self._known.keys() - seen:
            batch.groups[name] = None
            batch.gone += self._state.files_of(name)
        self._finish(batch, whole=True)
        return self._result()

    def _look(self, batch: _Batch, found: Look) -> None:
        before = self._state.files_of(found.name)
        changed = [(path, seen) for path, seen in found.files.items() if before.get(path) != seen]
        gone = before.keys() - found.files.keys()
        self._left_out += found.left_out
        if not changed and not gone and self._known.get(found.name) == packed_group(found.group):
            return
        batch.changed += changed
        batch.gone += gone
        batch.bytes += sum(seen.size for _, seen in changed)
        batch.groups[found.name] = found.group

    def _finish(self, batch: _Batch, *, whole: bool) -> None:
        """Store what a batch has and write down that it is stored."""
        last = self._state.run
        identity = self._new_id(last)
        stored = self._packer(identity).store(batch.changed) if batch.changed else Stored()
        self._unread |= stored.unread
        for path in stored.unsettled:
            group = batch.groups["/".join(path.split("/")[:2])]
            if group is not None:
                group.folders[""] = -1
        full = last is None or (whole and (self._wants_full(last) or (self._full and last.chain > 0)))
        needed = last is None or stored.files or batch.gone or full or (whole and not last.whole)
        if needed:
            self._state.set_meta("pending", identity)
        with self._state.changing():
            if needed:
                self._write(identity, batch, stored, last, full=full, whole=whole)
            for name, each in batch.groups.items():
                self._state.set_group(name, each)

    def _packer(self, identity: str) -> Packer:
        media = self._media
        return Packer(
            vault=media.vault,
            source=media.source,
            state=self._state,
            run=identity,
            key=lambda: media.key(identity),
            name_key=media.name_key,
            uploads=media.uploads,
            stopped=media.stopped,
        )

    def _write(
        self, identity: str, batch: _Batch, stored: Stored, last: Run | None, *, full: bool, whole: bool
    ) -> None:
        state, vault, key = self._state, self._media.vault, self._media.key(identity)
        self._note(batch, stored, last, whole=whole)
        head = index.Head(index.FORMAT, identity, full, last.id if last else "")
        files = self._entries(None if full else list(stored.files))
        gone = [] if full else sorted(batch.gone)
        found = MediaRun(
            organisation=vault.organisation,
            server=vault.server,
            id=identity,
            at=self._at,
            key=key.id,
            whole=whole,
            chain=0 if full or last is None else last.chain + 1,
            previous=last.ref if last else None,
            index=vault.put(names.media_index(identity), index.write(head, files, gone), key, FILES, identity),
            known=self._known_object(identity) if full else None,
            packs=tuple(_packs(state.objects() if full else stored.objects)),
            files=0,
            bytes=0,
        )
        found.files, found.bytes = state.totals()
        ref = self._put(found, key)
        refs = [ref, found.index, *stored.objects, *([found.known] if found.known else [])]
        self._new_bytes += sum(each.size for each in refs)
        self._stored = True
        state.finish(_run(found, ref, last))

    def _note(self, batch: _Batch, stored: Stored, last: Run | None, *, whole: bool) -> None:
        state = self._state
        before = state.hashes([*stored.files, *batch.gone])
        state.drop(batch.gone)
        state.add(stored.objects, stored.contents.items())
        state.keep(stored.files.items())
        # What was recalled from the store is known until the first whole run has said which of it there is.
        if last is not None and last.whole:
            state.tidy(before)
        elif whole:
            state.tidy()

    def _entries(self, paths: list[str] | None) -> Iterator[index.File]:
        for path, kept, content in self._state.entries(paths):
            yield index.File(
                path,
                kept.seen.size,
                kept.seen.mtime,
                kept.hash,
                content.object,
                content.at,
                content.length,
                content.packed,
            )

    def _known_object(self, identity: str) -> Ref:
        pieces = index.write_known(identity, self._state.objects(), self._state.contents())
        key = index.known_key(self._media.name_key)
        return self._media.vault.put(names.media_known(identity), pieces, key, FILES, identity)

    def _put(self, found: MediaRun, key: DataKey) -> Ref:
        name = names.media_run(found.id)
        data = manifest.seal(found, key, name)
        kept = self._media.vault.store.put(name, [data])
        return Ref(
            name=name,
            size=kept.size,
            sha256=kept.sha256,
            mark=kept.mark,
            key=key.id,
            part_of=found.id,
            plain=len(data),
        )

    def _wants_full(self, last: Run) -> bool:
        return last.chain >= MOST_CHAIN or last.delta_bytes > last.full_bytes

    def _new_id(self, last: Run | None) -> str:
        """Return an id that comes after all before it, also when the clock was set back."""
        newest = max(last.id if last else "", self._state.meta("newest"))
        now = datetime.now(UTC)
        return names.new_id(max(now, names.time_of(newest) + timedelta(seconds=1)) if newest else now)

    def _result(self) -> MediaResult:
        last = cast("Run", self._state.run)
        return MediaResult(
            ref=last.ref,
            files=last.files,
            bytes=last.bytes,
            new_bytes=self._new_bytes,
            stored=self._stored,
            left_out=self._left_out,
            unread=self._unread,
        )


def _run(found: MediaRun, ref: Ref, last: Run | None) -> Run:
    full = found.chain == 0
    return Run(
        id=found.id,
        ref=ref,
        whole=found.whole,
        chain=found.chain,
        files=found.files,
        bytes=found.bytes,
        full_bytes=found.index.size if full or last is None else last.full_bytes,
        delta_bytes=0 if full or last is None else last.delta_bytes + found.index.size,
    )


def _packs(objects: Iterator[Ref] | list[Ref]) -> Iterator[Packs]:
    """Yield objects in short, by run. They come in the order of their names, or are all of one run."""
    for (run, key), some in groupby(objects, lambda ref: (ref.part_of, ref.key)):
        packed = (Packed(int(each.name[-6:]), each.size, each.sha256, each.mark, each.plain) for each in some)
        yield Packs(run=run, key=key, objects=tuple(sorted(packed, key=lambda each: each.number)))
