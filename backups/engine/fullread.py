"""The full read: every byte of restore points, their WAL and their media, as a restore would see it. No Django.

Of each object: the SHA-256 of what is stored, authentication under its names, its compressed frames; of a base backup
each file against PostgreSQL's own manifest; of WAL each page's address; of media each file against the index.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from functools import partial
from uuid import UUID

import zstandard

from backups.engine import configuration, names
from backups.engine.catalogue import Catalogue, NotRestorable
from backups.engine.configuration import ConfigurationError
from backups.engine.contents import ContentError, check_base, check_wal
from backups.engine.coverage import Piece, piece_of
from backups.engine.database import lsn
from backups.engine.manifest import MediaRun, Moment, Point, Ref, Sealed
from backups.engine.media import index, unpack
from backups.engine.media.errors import MediaError
from backups.engine.media.index import File
from backups.engine.media.packs import keyed
from backups.engine.media.unpack import Opens
from backups.engine.objects import Vault
from backups.engine.stores.base import NoSuchObject, StoreError
from backups.engine.verify import Expected, Found, Report, chosen, look, needed, report
from security.streams import DataKey, StreamError

READERS = 3
Job = tuple[str, Callable[[], int]]


def read(
    catalogue: Catalogue,
    vault: Vault,
    opens: Opens,
    *,
    only: Iterable[str] | None = None,
    name_key: bytes = b"",
    since: datetime | None = None,
    expected: Expected | None = None,
    stopped: Callable[[], bool] = lambda: False,
) -> Report:
    """Read restore points (`only`, else all there is: every moment too) to the last byte, and say what is damaged.

    `opens` gives data keys, and raises `LookupError` for one that does not exist: then the object that asks for it is
    damaged. What else it raises passes through, and so does a store that does not answer. With `name_key`
    each media file is compared with its keyed hash. `since` and `expected` are as `look` takes them.
    `stopped` ends it early: what was read until then is told.
    """
    reading = _Reading(catalogue, vault, _remembered(opens), name_key)
    cheap = look(catalogue, only=only, since=since, expected=expected, marks=False)
    found: Found = {each.name: (each.kind, each.text) for each in cheap.damage}
    points = chosen(catalogue, only)
    objects = size = 0
    with ThreadPoolExecutor(READERS, "verify") as pool:
        for stage in _stages(reading.jobs(points, everything=only is None)):
            some = (each for each in stage if each[0] not in found)
            for count, wrong in pool.map(lambda job: _tried(job, stopped), some):
                objects, size = objects + 1, size + count
                found |= {name: text for name, text in wrong.items() if name not in found}
    seals = catalogue.seals(reading.opens, reading.manifests)
    found |= {name: ("seal", text) for name, text in seals.items() if name not in found}
    return report(catalogue, points, found, objects=objects, size=size, full=True, hashed=bool(name_key))


def _stages(jobs: Iterator[Job]) -> Iterator[list[Job]]:
    """Media's contents come after all indexes: these say what is in them."""
    first, last = list[Job](), list[Job]()
    for job in jobs:
        (last if names.is_contents(job[0]) else first).append(job)
    yield first
    yield last


def _remembered(opens: Opens) -> Opens:
    """Ask for each data key once: a restore point has few, and Hearth answers a limited number a second."""
    found: dict[UUID, DataKey] = {}
    lock = threading.Lock()

    def remembered(identity: UUID) -> DataKey:
        with lock:
            if identity not in found:
                found[identity] = opens(identity)
            return found[identity]

    return remembered


def _tried(job: Job, stopped: Callable[[], bool]) -> tuple[int, Found]:
    name, work = job
    if stopped():
        return 0, {}
    try:
        return work(), {}
    except NoSuchObject:
        return 0, {name: ("missing", f"{name} is listed and can't be read: it is gone.")}
    except StoreError as error:
        if error.code != "StoreDamaged":
            raise
        return 0, {name: ("content", str(error))}
    except LookupError:
        return 0, {name: ("content", f"{name} asks for a data key that does not exist.")}
    except (StreamError, ContentError, MediaError, ConfigurationError, zstandard.ZstdError, NotRestorable) as error:
        return 0, {name: ("content", f"{name}: {error}")}


class _Reading:
    """What there is to read of a catalogue."""

    def __init__(self, catalogue: Catalogue, vault: Vault, opens: Opens, name_key: bytes) -> None:
        self.manifests: list[Sealed] = []
        """Those that were used: their seals are checked too."""
        self._catalogue = catalogue
        self._vault = vault
        self.opens = self._opens = opens
        self._name_key = name_key

    def jobs(self, points: list[Point], *, everything: bool) -> Iterator[Job]:
        """Yield one piece of work for each object. Media's indexes are read as this goes on."""
        wanted = set[str]().union(*(needed(self._catalogue, point) for point in points))
        self.manifests += points
        for point in points:
            yield point.base.name, partial(self._base, point)
            yield point.configuration.name, partial(self._configuration, point)
        moments = [each for some in self._catalogue.moments.values() for each in some]
        if not everything:
            moments = [each for each in moments if any(ref.name in wanted for ref in each.wal)]
        self.manifests += moments
        yield from self._wal_jobs(moments, None if everything else wanted, {point.line for point in points})
        media = [point.media for point in points] + ([each.media for each in moments] if everything else [])
        yield from self._media_jobs(media)

    def _wal_jobs(self, moments: list[Moment], wanted: set[str] | None, lines: set[str]) -> Iterator[Job]:
        known = {ref.name: ref for moment in moments for ref in moment.wal}
        systems = {point.line: point.system for point in self._catalogue.points.values()}
        for name in self._catalogue.objects:
            if not name.startswith(names.LINES) or "/wal/" not in name:
                continue
            line = name.split("/")[1]
            if (piece := piece_of(name)) is not None and (wanted is None or name in wanted):
                yield name, partial(self._wal, line, piece, known.get(name), systems.get(line, ""))
            elif name.endswith(".history") and (wanted is None or line in lines):
                yield name, partial(self._history, name, line)

    def _media_jobs(self, refs: list[Ref | None]) -> Iterator[Job]:
        runs: dict[str, MediaRun] = {}
        for ref in refs:
            with contextlib.suppress(NotRestorable):  # `look` has told
                runs |= {run.id: run for run in self._catalogue.chain(ref) if run.id not in runs}
        self.manifests += runs.values()
        files: dict[str, dict[int, File]] = {}
        for run in runs.values():
            yield run.index.name, partial(self._index, run, files)
            if run.known is not None:
                yield run.known.name, partial(self._known, run.known)
        for ref in {ref.name: ref for run in runs.values() for packs in run.packs for ref in packs.refs()}.values():
            yield ref.name, partial(self._contents, ref, files)

    def _base(self, point: Point) -> int:
        check_base(self._vault.read(point.base, self._opens), point.system)
        return point.base.size

    def _configuration(self, point: Point) -> int:
        found = configuration.read(self._vault.read(point.configuration, self._opens))
        if point.signing_key_id:
            configuration.assert_signing_key(found, point.signing_key_id)
        return point.configuration.size

    def _wal(self, line: str, piece: Piece, ref: Ref | None, system: str) -> int:
        if ref is None:  # no moment names it: what it is, its encryption says
            check_wal(self._vault.get(piece.name, self._opens, line), piece, system)
        else:
            check_wal(self._vault.read(ref, self._opens), piece, system)
        return self._catalogue.objects[piece.name].size

    def _history(self, name: str, line: str) -> int:
        text = b"".join(map(bytes, self._vault.get(name, self._opens, line)))
        try:
            lsn.switches(text.decode())
        except ValueError as error:
            raise ContentError(f"This is no timeline's history ({error}).") from None
        return self._catalogue.objects[name].size

    def _index(self, run: MediaRun, files: dict[str, dict[int, File]]) -> int:
        for block in unpack.blocks(self._vault, self._opens, run):
            for file in block.files:
                files.setdefault(file.object, {})[file.at] = file
        return run.index.size

    def _known(self, ref: Ref) -> int:
        if self._name_key:
            key = index.known_key(self._name_key)
            for _ in index.read_known(self._vault.read(ref, lambda _: key), ref.name):
                pass
        else:
            digest = hashlib.sha256()
            for piece in self._vault.store.get(ref.name):
                digest.update(piece)
            if digest.hexdigest() != ref.sha256:
                raise ContentError("It is not what was stored under this name.")
        return ref.size

    def _contents(self, ref: Ref, files: dict[str, dict[int, File]]) -> int:
        wanted = [file for _, file in sorted(files.get(ref.name, {}).items())]
        digest = keyed(self._name_key)
        for file, piece in unpack.contents(self._vault.read(ref, self._opens), wanted, ref.name):
            if piece is not None:
                if self._name_key:
                    digest.update(piece)
                continue
            if self._name_key and digest.digest() != file.hash:
                raise MediaError(f"{file.path} is not the file that was stored.", code="MediaDamaged")
            digest = keyed(self._name_key)
        return ref.size
