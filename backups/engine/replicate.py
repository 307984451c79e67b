"""Copy one server's backups from one store to another, of any kind, by what lies in both. Imports no Django.

    report = Replication(first, second).turn()      # copies what lacks; call it again and again
    Replication(second, first).turn()               # repairs a first store that was lost

Nothing is remembered that can't be seen again, so it may be killed at any moment and goes on where it was. Data come
first, then the manifests of media runs, the moments, and at last the restore points, each only when everything that it
names is there: the second store never shows a point that is not whole. What manifests name is compared with their
SHA-256 on its way and never kept when it differs. Nothing is ever removed here; expiry does that on both sides.
"""

from __future__ import annotations

import hashlib
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from backups.engine import manifest, names
from backups.engine.coverage import Coverage
from backups.engine.database import lsn
from backups.engine.manifest import ManifestError, MediaRun, Moment, Point, Ref
from backups.engine.rate import Rate
from backups.engine.stores.base import NoSuchObject, ObjectExists, Store, Stored, StoreError

WORKERS = 4
SETTLED = timedelta(minutes=15)
"""An object is named by a manifest within minutes; one that is older than the newest manifest by this may be an old
one that the other store lost, whose checksum an old manifest knows."""
MOST_HELD = 64 * 2**20
"""Bytes of manifests in memory; those beyond it are the next turn's."""
_ENDING = {"StoreAway", "StoreFull", "StoreDenied", "StoreMissing", "StoreMisused"}
"""What the next object would meet too."""
_KINDS: tuple[tuple[str, type[Point | Moment | MediaRun]], ...] = (
    (names.MEDIA_RUNS, MediaRun),
    ("/moments/", Moment),
    (names.POINTS, Point),
)


@dataclass(frozen=True, slots=True)
class Fault:
    """One object that could not be copied, and what that means."""

    name: str
    code: str
    text: str


@dataclass(frozen=True, slots=True)
class Lag:
    """What the second store lacks. `seconds` is the age of the oldest of it; 0 where it lacks nothing."""

    objects: int = 0
    bytes: int = 0
    seconds: float = 0.0


@dataclass
class Report:
    """What one turn did."""

    copied: int = 0
    bytes: int = 0
    faults: list[Fault] = field(default_factory=list)
    waiting: list[str] = field(default_factory=list)
    """Manifests that were not copied, because something that they name is not there yet."""
    stopped: StoreError | None = None
    """Why the turn ended before its end; what lacks is copied by the next one."""
    before: Lag = Lag()
    after: Lag = Lag()


@dataclass(slots=True)
class _Plan:
    """What lacks, and what is known of it."""

    missing: dict[str, Stored]
    newest: datetime | None = None
    """When the source's newest manifest was written."""
    expected: dict[str, Ref] = field(default_factory=dict)
    manifests: list[tuple[str, bytes, Point | Moment | MediaRun]] = field(default_factory=list)
    done: dict[str, Stored] = field(default_factory=dict)
    gone: set[str] = field(default_factory=set)


class Replication:
    """Copies from `source` to `target`. `rate` bounds bytes a second, of all `workers` together; None: unbounded.

    `turn` belongs to one thread. `stop` ends a turn from another: what is on its way is not kept.
    """

    def __init__(self, source: Store, target: Store, *, workers: int = WORKERS, rate: float | None = None) -> None:
        self._source = source
        self._target = target
        self._workers = workers
        self._rate = Rate(rate)
        self._copied: dict[str, str] = {}
        """SHA-256 of what was copied before a manifest named it."""
        self._halt = threading.Event()
        self._asked_to_stop = False

    def stop(self) -> None:
        """Let the turn that runs, and each later one, end soon."""
        self._asked_to_stop = True
        self._halt.set()

    def lag(self) -> Lag:
        """Return what the target lacks, by listings alone."""
        missing, _, _ = self._compare()
        return _lag(missing.values())

    def turn(self) -> Report:
        """Copy everything that the target lacks now. Never raises `StoreError`: `Report.stopped` says what ended it."""
        report = Report()
        if not self._asked_to_stop:
            self._halt.clear()
        plan = _Plan({})
        try:
            plan.missing, plan.newest, differing = self._compare()
            report.before = _lag(plan.missing.values())
            report.faults += [_differs(name) for name in differing]
            self._read_manifests(plan, report)
            self._explain(plan, report)
            self._copy_data(plan, report)
            self._copy_manifests(plan, report)
        except StoreError as error:
            report.stopped = error
        except _Halted:
            report.stopped = StoreError("The copy to the other store was ended before its end.")
        left = [each for name, each in plan.missing.items() if name not in plan.done and name not in plan.gone]
        report.after = _lag(left)
        return report

    def _compare(self) -> tuple[dict[str, Stored], datetime | None, list[str]]:
        """Walk both listings side by side; return what lacks, the newest manifest's time, and what differs in size."""
        missing, differing, newest = dict[str, Stored](), list[str](), None
        others = self._target.listing()
        other = next(others, None)
        for each in self._source.listing():
            if _kind(each.name) and each.modified:
                newest = max(newest or each.modified, each.modified)
            while other is not None and other.name < each.name:
                other = next(others, None)
            if other is None or other.name != each.name:
                missing[each.name] = each
            elif other.size != each.size:
                differing.append(each.name)
        return missing, newest, differing

    def _read_manifests(self, plan: _Plan, report: Report) -> None:
        """Read the manifests that lack, in the order in which they are copied, and what they name."""
        wanted, held = deque(sorted(filter(_kind, plan.missing), key=_order)), 0
        with ThreadPoolExecutor(self._workers) as pool:
            while wanted and held < MOST_HELD:
                some = [wanted.popleft() for _ in range(min(len(wanted), 2 * self._workers))]
                for name, found in zip(some, pool.map(self._read, some), strict=True):
                    if found is None:
                        plan.gone.add(name)
                    elif isinstance(found, Fault):
                        report.faults.append(found)
                    else:
                        plan.manifests.append((name, *found))
                        plan.expected |= {ref.name: ref for ref in _refs(found[1])}
                        held += len(found[0])
        report.waiting += wanted

    def _read(self, name: str) -> tuple[bytes, Point | Moment | MediaRun] | Fault | None:
        if (kind := _kind(name)) is None:
            return None
        try:
            data = b"".join(self._metered(name))
            return data, manifest.read(data, kind, name)
        except NoSuchObject:
            return None
        except ManifestError as error:
            return Fault(name, "StoreDamaged", str(error))

    def _explain(self, plan: _Plan, report: Report) -> None:
        """Find the checksums of old objects that the target lost: manifests that both sides have name them."""
        if plan.newest is None:
            return
        old = plan.newest - SETTLED
        puzzling = {
            name
            for name, each in plan.missing.items()
            if not _kind(name) and name not in plan.expected and each.modified and each.modified < old
        }
        if not puzzling:
            return
        known = {name for name, _, _ in plan.manifests}
        others = [each.name for each in self._source.listing() if _kind(each.name) and each.name not in known]
        for name in others:
            found = self._read(name)
            if isinstance(found, Fault):
                report.faults.append(found)
            elif found is not None:
                plan.expected |= {ref.name: ref for ref in _refs(found[1]) if ref.name in puzzling}

    def _copy_data(self, plan: _Plan, report: Report) -> None:
        """Copy everything but manifests, the oldest first."""
        data = [each for name, each in plan.missing.items() if not _kind(name)]
        data.sort(key=lambda each: (each.modified or datetime.min.replace(tzinfo=UTC), each.name))

        def copy(each: Stored) -> Stored | Fault | None:
            try:
                return self._copy(each.name, plan.expected.get(each.name))
            except _Halted:
                raise
            except BaseException:
                self._halt.set()  # the others would meet the same
                raise

        try:
            with ThreadPoolExecutor(self._workers, thread_name_prefix="replicate") as pool:
                ended = _Ended(plan, report)
                for each, future in [(each, pool.submit(copy, each)) for each in data]:
                    ended.take(each.name, future.result)
            ended.raise_first()
        finally:
            if not self._asked_to_stop:
                self._halt.clear()

    def _copy(self, name: str, ref: Ref | None) -> Stored | Fault | None:
        """Copy one object; return it as the target has it, or None when the source has it no more."""
        if self._halt.is_set():
            raise _Halted
        try:
            kept = self._target.put(name, self._checked(name, ref))
        except NoSuchObject as error:
            if error.name != name:
                raise
            return None
        except ObjectExists:  # another process copies too
            kept = self._target.head(name)
        except _Differs as error:
            return error.fault
        except StoreError as error:
            if error.code in _ENDING:
                raise
            return Fault(name, error.code, str(error))
        if kept.sha256:
            self._copied[name] = kept.sha256
        return kept

    def _checked(self, name: str, ref: Ref | None) -> Iterator[bytes]:
        digest, size = hashlib.sha256(), 0
        for piece in self._metered(name):
            digest.update(piece)
            size += len(piece)
            yield piece
        if ref and (size, digest.hexdigest()) != (ref.size, ref.sha256):
            raise _Differs(_differs(name))

    def _metered(self, name: str) -> Iterator[bytes]:
        for piece in self._source.get(name):
            if self._halt.is_set():
                raise _Halted
            self._rate.spend(len(piece), self._halt)
            yield piece

    def _copy_manifests(self, plan: _Plan, report: Report) -> None:
        """Copy each manifest once all that it names is there; a line's moments stop at the first that is not."""
        stopped: set[str] = set()
        for name, data, found in plan.manifests:
            above = name.rpartition("/")[0] if isinstance(found, Moment) else name
            try:
                whole = above not in stopped and self._is_whole(found, plan, report)
            except NoSuchObject:
                whole = False
            if not whole:
                stopped.add(above)
                report.waiting.append(name)
                continue
            if self._halt.is_set():
                raise _Halted
            try:
                plan.done[name] = self._target.put(name, [data])
            except ObjectExists:
                plan.done[name] = self._target.head(name)
            report.copied += 1
            report.bytes += len(data)

    def _is_whole(self, found: Point | Moment | MediaRun, plan: _Plan, report: Report) -> bool:
        """Return whether the target has what a manifest names, with the right checksums."""
        for ref in _refs(found):
            if ref.name in plan.gone and isinstance(found, Moment):
                continue  # pieces of a segment that became whole meanwhile are removed
            if not self._has(ref, plan, report):
                if isinstance(found, Moment) and not self._source_has(ref.name):
                    continue
                return False
        if isinstance(found, Point):
            wal = Coverage(each.name for each in self._target.listing(f"{names.LINES}{found.line}/wal/"))
            end = lsn.number(found.end)
            return wal.from_(lsn.number(found.begin), end).end >= end
        return True

    def _has(self, ref: Ref, plan: _Plan, report: Report) -> bool:
        if ref.name in plan.missing and ref.name not in plan.done:
            return False
        try:
            there = plan.done.get(ref.name) or self._target.head(ref.name)
        except NoSuchObject:
            return False
        right = there.size == ref.size and (bool(_kind(ref.name)) or self._is_verified(ref, there))
        if not right:
            report.faults.append(_differs(ref.name))
        return right

    def _is_verified(self, ref: Ref, there: Stored) -> bool:
        """Return whether the target has the bytes that a manifest names; read again what somebody else copied."""
        if (copied := self._copied.pop(ref.name, "")) or (there.mark and there.mark == ref.mark):
            return copied in {"", ref.sha256}
        digest = hashlib.sha256()
        for piece in self._target.get(ref.name):
            digest.update(piece)
        return digest.hexdigest() == ref.sha256

    def _source_has(self, name: str) -> bool:
        try:
            self._source.head(name)
        except NoSuchObject:
            return False
        return True


class _Halted(Exception):
    """Somebody asked for the end, or another object met what this one would meet too."""


class _Differs(Exception):
    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.text)
        self.fault = fault


class _Ended:
    """Gathers what became of each object, and the first error that ended the others."""

    def __init__(self, plan: _Plan, report: Report) -> None:
        self._plan = plan
        self._report = report
        self._halted = False
        self._error: StoreError | None = None

    def take(self, name: str, result: Callable[[], Stored | Fault | None]) -> None:
        try:
            found = result()
        except _Halted:
            self._halted = True
            return
        except StoreError as error:
            self._error = self._error or error
            return
        if found is None:
            self._plan.gone.add(name)
        elif isinstance(found, Fault):
            self._report.faults.append(found)
        else:
            self._plan.done[name] = found
            self._report.copied += 1
            self._report.bytes += found.size

    def raise_first(self) -> None:
        if self._error:
            raise self._error
        if self._halted:
            raise _Halted


def _kind(name: str) -> type[Point | Moment | MediaRun] | None:
    """Return which manifest a name is of, or None for data."""
    if name.startswith(names.LINES):
        return Moment if name.split("/")[2:3] == ["moments"] else None
    return next((kind for prefix, kind in _KINDS if name.startswith(prefix)), None)


def _order(name: str) -> tuple[int, str]:
    kind = _kind(name)
    return [each for _, each in _KINDS].index(kind) if kind else -1, name


def _refs(found: Point | Moment | MediaRun) -> Iterator[Ref]:
    """Yield what must be in a store before a manifest is."""
    if isinstance(found, MediaRun):
        yield from found.refs()
        if found.previous is not None and found.chain:
            yield found.previous
        return
    if isinstance(found, Moment):
        yield from found.wal
    else:
        yield found.base
        yield found.configuration
    if found.media is not None:
        yield found.media


def _lag(missing: Iterable[Stored]) -> Lag:
    now, some = datetime.now(UTC), list(missing)
    oldest = min((each.modified for each in some if each.modified), default=now)
    return Lag(len(some), sum(each.size for each in some), max((now - oldest).total_seconds(), 0.0) if some else 0.0)


def _differs(name: str) -> Fault:
    text = (
        f"The two stores don't agree about {name}, or it is not what its manifest says. It was not copied, and what "
        "needs it is not shown there. Verify both stores, and repair the one that is wrong."
    )
    return Fault(name, "StoreDamaged", text)
