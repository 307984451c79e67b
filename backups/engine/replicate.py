"""Copy one server's backups from one store to another, of any kind, by what lies in both. Imports no Django.

    report = Replication(first, second).turn()      # copies what lacks; call it again and again
    Replication(second, first).turn()               # repairs a first store that was lost
    Replication(first, second, seconds=60).turn()   # begins no further object after a minute

Nothing is remembered that can't be seen again, so it may be killed at any moment and goes on where it was. Data come
first, then the manifests of media runs, the moments, and at last the restore points, each only when everything that it
names is there: the second store never shows a point that is not whole. What manifests name is compared with their
SHA-256 on its way and never kept when it differs. Nothing is ever removed here; expiry does that on both sides.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from backups.engine import manifest, names
from backups.engine.coverage import Coverage
from backups.engine.database import lsn
from backups.engine.lacking import (
    Compared,
    Fault,
    Lag,
    Manifest,
    Report,
    Shown,
    compare,
    differs,
    kind_of,
    lag_of,
    order_of,
    refs,
)
from backups.engine.manifest import ManifestError, Moment, Point, Ref
from backups.engine.rate import Rate
from backups.engine.stores.base import NoSuchObject, ObjectExists, Store, Stored, StoreError

WORKERS = 4
SETTLED = timedelta(minutes=15)
"""An object is named by a manifest within minutes; one that is older than the newest manifest by this may be an old
one that the other store lost, whose checksum an old manifest knows."""
MOST_HELD = 64 * 2**20
"""Bytes of manifests in memory; those beyond it are the next turn's."""
MOST_MANIFESTS = 2000
"""The same for their number: with a store far away each takes its time."""
_ENDING = {"StoreAway", "StoreFull", "StoreDenied", "StoreMissing", "StoreMisused"}
"""What the next object would meet too."""


@dataclass(slots=True)
class _Plan:
    """What lacks, and what is known of it."""

    missing: dict[str, Stored] = field(default_factory=dict)
    newest: datetime | None = None
    """When the source's newest manifest was written."""
    cut: bool = False
    """There are more manifests than one turn reads. Then only what those that were read name is copied."""
    expected: dict[str, Ref] = field(default_factory=dict)
    manifests: list[tuple[str, bytes, Manifest]] = field(default_factory=list)
    done: dict[str, Stored] = field(default_factory=dict)
    gone: set[str] = field(default_factory=set)


class Replication:
    """Copies from `source` to `target`. `rate` bounds bytes a second, of all `workers` together; None: unbounded.

    A turn begins no further object when it has taken `seconds`, or begun `most` bytes; what it began it ends, and what
    has become whole it shows, for as long again. `turn` belongs to one thread. `stop` ends a turn from another: what is
    on its way is not kept.
    """

    def __init__(
        self,
        source: Store,
        target: Store,
        *,
        workers: int = WORKERS,
        rate: float | None = None,
        seconds: float | None = None,
        most: int | None = None,
    ) -> None:
        self._source = source
        self._target = target
        self._workers = workers
        self._rate = Rate(rate)
        self._seconds = seconds
        self._most = most
        self._budget = _Budget(None, None)
        self._copied: dict[str, str] = {}
        """SHA-256 of what was copied before a manifest named it."""
        self._halt = threading.Event()
        self._asked_to_stop = False

    def stop(self) -> None:
        """Let the turn that runs, and each later one, end soon."""
        self._asked_to_stop = True
        self._halt.set()

    def pace(self, rate: float | None) -> None:
        """Bound bytes a second anew, also of the turn that runs."""
        self._rate.set(rate)

    def lag(self) -> Lag:
        """Return what the target lacks, by listings alone."""
        return lag_of(compare(self._source, self._target).missing.values())

    def turn(self) -> Report:
        """Copy everything that the target lacks now. Never raises `StoreError`: `Report.stopped` says what ended it."""
        report, plan = Report(), _Plan()
        if not self._asked_to_stop:
            self._halt.clear()
        self._budget = _Budget(self._seconds, self._most)
        try:
            self._begin(compare(self._source, self._target), plan, report)
            self._read_manifests(plan, report)
            self._explain(plan, report)
            self._copy_data(plan, report)
            self._budget = _Budget(self._seconds, None)
            self._copy_manifests(plan, report)
        except StoreError as error:
            report.stopped = error
        except _Halted:
            report.stopped = StoreError("The copy to the other store was ended before its end.")
        for name in plan.done:
            report.target.note(name)
        left = [each for name, each in plan.missing.items() if name not in plan.done and name not in plan.gone]
        report.after = lag_of(left)
        return report

    def _begin(self, found: Compared, plan: _Plan, report: Report) -> None:
        plan.missing, plan.newest = found.missing, found.newest
        report.listed = True
        report.source, report.target_before = found.source, found.target
        report.target = Shown(set(found.target.points), dict(found.target.moments))
        report.before = lag_of(plan.missing.values())
        report.faults += [differs(name) for name in found.differing]

    def _read_manifests(self, plan: _Plan, report: Report) -> None:
        """Read the manifests that lack, in the order in which they are copied, and what they name."""
        wanted, held = deque(sorted(filter(kind_of, plan.missing), key=order_of)), 0
        with ThreadPoolExecutor(self._workers) as pool:
            while wanted and held < MOST_HELD and len(plan.manifests) < MOST_MANIFESTS:
                some = [wanted.popleft() for _ in range(min(len(wanted), 2 * self._workers))]
                for name, found in zip(some, pool.map(self._read, some), strict=True):
                    if found is None:
                        plan.gone.add(name)
                    elif isinstance(found, Fault):
                        report.faults.append(found)
                    else:
                        plan.manifests.append((name, *found))
                        plan.expected |= {ref.name: ref for ref in refs(found[1])}
                        held += len(found[0])
        plan.cut = bool(wanted)
        report.more |= plan.cut

    def _read(self, name: str) -> tuple[bytes, Manifest] | Fault | None:
        if (kind := kind_of(name)) is None:
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
        if plan.newest is None or plan.cut:
            return
        old = plan.newest - SETTLED
        puzzling = {
            name
            for name, each in plan.missing.items()
            if not kind_of(name) and name not in plan.expected and each.modified and each.modified < old
        }
        if not puzzling:
            return
        known = {name for name, _, _ in plan.manifests}
        others = [each.name for each in self._source.listing() if kind_of(each.name) and each.name not in known]
        for name in others:
            found = self._read(name)
            if isinstance(found, Fault):
                report.faults.append(found)
            elif found is not None:
                plan.expected |= {ref.name: ref for ref in refs(found[1]) if ref.name in puzzling}

    def _copy_data(self, plan: _Plan, report: Report) -> None:
        """Copy everything but manifests, the oldest first."""
        data = [
            each for name, each in plan.missing.items() if not kind_of(name) and (name in plan.expected or not plan.cut)
        ]
        data.sort(key=lambda each: (each.modified or datetime.min.replace(tzinfo=UTC), each.name))

        def copy(each: Stored) -> Stored | Fault | None:
            try:
                if not self._budget.allows(each.size):
                    raise _Enough
                return self._copy(each.name, plan.expected.get(each.name))
            except _Enough:
                raise
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
            raise _Differs(differs(name))

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
            if not self._budget.allows(0):
                report.more = True
                return
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

    def _is_whole(self, found: Manifest, plan: _Plan, report: Report) -> bool:
        """Return whether the target has what a manifest names, with the right checksums."""
        for ref in refs(found):
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
        right = there.size == ref.size and (bool(kind_of(ref.name)) or self._is_verified(ref, there))
        if not right:
            report.faults.append(differs(ref.name))
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


class _Enough(Exception):
    """The turn has done what it was to do; the next one goes on."""


class _Budget:
    """What a turn may begin. Several threads share it."""

    def __init__(self, seconds: float | None, most: int | None) -> None:
        self._end = None if seconds is None else time.monotonic() + seconds
        self._left = most
        self._lock = threading.Lock()

    def allows(self, size: int) -> bool:
        """Return whether an object of that many bytes may be begun; the first always may, however large it is."""
        if self._end is not None and time.monotonic() >= self._end:
            return False
        with self._lock:
            if self._left is None:
                return True
            if self._left <= 0:
                return False
            self._left -= size
            return True


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
        except _Enough:
            self._report.more = True
            return
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
