"""Bring a keyring back from key bundles: newest first, each row as it was last seen, what was erased stays erased."""

from __future__ import annotations

import uuid
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from django.db import transaction
from django.utils import timezone

from audit.services import record
from security.errors import BundleError, SecurityError
from security.keyring import bundle, roots
from security.keyring.bundle import Bundle, Label
from security.keyring.places import Errand, Place
from security.models import PLATFORM, DataKey, Erasure, KeyEncryptionKey, RootKey

MARGIN = timedelta(hours=1)
"""How far clocks may differ, and how long a key may have been on its way into a bundle."""
SECONDS = 600.0
State = KeyEncryptionKey.State


@dataclass
class Recovered:
    """What came back, and what could not be opened: one sentence each."""

    data_keys: int = 0
    bundles: int = 0
    faults: list[str] = field(default_factory=list)


def from_places(actor: Any, places: Sequence[Place]) -> Recovered:
    """Restore the newest whole keyring of these places with all that came after it, from all of them together.

    Where something of that is damaged or missing, older bundles are read too. All of it or nothing is written.
    """
    outcome = Recovered()
    found = _labels(places, outcome.faults)
    outcome.data_keys = recover(actor, _opened(found, _cutoff(found), outcome))
    return outcome


@transaction.atomic
def recover(actor: Any, bundles: Iterable[Bundle]) -> int:
    """Write the rows of bundles, given newest first, into a new keyring; return how many data keys came back.

    New is one without any organisation's keys. The platform's are made by every start: they stay the active ones, and
    the bundles' versions of them come behind, only to open.
    """
    work = _Recovery()
    taken = [work.take(each) for each in bundles]
    if not taken:
        raise BundleError("There is no key bundle that opens. Nothing was restored. Look for another copy.")
    return work.finish(actor, taken)


class _Recovery:
    """One restore. The first snapshot of a row that is taken counts, because bundles come newest first."""

    def __init__(self) -> None:
        present = list(KeyEncryptionKey.objects.select_for_update())
        if any(kek.owner != PLATFORM for kek in present):
            raise BundleError("This keyring is not empty, so no bundle was restored. Restore into a new database.")
        if not present:
            RootKey.objects.all().delete()
        self.roots = dict(RootKey.objects.values_list("id", "state"))
        self.versions: defaultdict[uuid.UUID, set[int]] = defaultdict(set)
        self.keks, self.active, self.retired = set[uuid.UUID](), set[uuid.UUID](), set[uuid.UUID]()
        for kek in present:
            self._know(kek)
        shared = DataKey.objects.filter(shared=True, reencrypt__isnull=True)
        self.shared = set(shared.values_list("owner", "purpose"))
        self.data_keys = set[uuid.UUID]()
        self.erasures: dict[uuid.UUID, Erasure] = {}
        self.asked = False

    def take(self, given: Bundle) -> str:
        """Write what a bundle has that no newer one had; return its id."""
        for values in given.roots:
            self._root(RootKey(**values))
        keks = [KeyEncryptionKey(**row) for row in given.keks if row["id"] not in self.keks]
        for kek in keks:
            self._prepare(kek)
        KeyEncryptionKey.objects.bulk_create(keks, batch_size=2000)
        rows = [DataKey(**row) for row in given.data_keys if row["id"] not in self.data_keys]
        for row in rows:
            self._share(row)
        DataKey.objects.bulk_create(rows, batch_size=2000)
        self.data_keys |= {row.pk for row in rows}
        self._erase([Erasure(**row) for row in given.erasures], given.part)
        return str(given.id)

    def finish(self, actor: Any, taken: list[str]) -> int:
        erased = [owner for owner, row in self.erasures.items() if row.destroyed]
        DataKey.objects.filter(owner__in=erased).delete()
        # Versions are destroyed, never deleted.
        KeyEncryptionKey.objects.filter(owner__in=erased).exclude(state=State.DESTROYED).update(
            state=State.DESTROYED, wrapped=b"", destroyed=timezone.now()
        )
        unused = KeyEncryptionKey.objects.filter(pk__in=self.retired, data_keys=None).exclude(state=State.DESTROYED)
        KeyEncryptionKey.objects.filter(pk__in=list(unused.values_list("pk", flat=True))).update(state=State.RETIRED)
        self._keep_erasures()
        count = DataKey.objects.filter(pk__in=self.data_keys).count()
        root = RootKey.objects.get(state=RootKey.State.ACTIVE)
        after = {"bundles": len(taken), "newest": taken[0], "keks": len(self.keks), "data_keys": count}
        record(actor=actor, verb="keys.restore", object=root, after=after)
        return count

    def _know(self, kek: KeyEncryptionKey) -> None:
        self.keks.add(kek.pk)
        self.versions[kek.owner].add(kek.version)
        if kek.state == State.ACTIVE:
            self.active.add(kek.owner)

    def _root(self, root: RootKey) -> None:
        if root.pk in self.roots:
            return
        if root.state == RootKey.State.ACTIVE and RootKey.State.ACTIVE in self.roots.values():
            root.state = RootKey.State.READABLE
        root.save(force_insert=True)
        self.roots[root.pk] = root.state

    def _prepare(self, kek: KeyEncryptionKey) -> None:
        if self.roots[kek.root_id] == RootKey.State.RETIRED:  # needed again, by what an older bundle brings back
            RootKey.objects.filter(pk=kek.root_id).update(state=RootKey.State.READABLE)
            self.roots[kek.root_id] = RootKey.State.READABLE
        if kek.version in self.versions[kek.owner]:
            # Two versions of one number: made on both sides of an earlier loss. The number is part of what is bound.
            with roots.unwrap(kek) as key:
                kek.version = max(self.versions[kek.owner]) + 1
                kek.wrapped = roots.wrap(kek, key)
        if kek.state == State.RETIRED:
            # Data keys of an older bundle may need it still; `finish` looks.
            self.retired.add(kek.pk)
            kek.state = State.DECRYPT_ONLY
        elif kek.state == State.ACTIVE and kek.owner in self.active:
            kek.state = State.DECRYPT_ONLY
        self._know(kek)

    def _share(self, row: DataKey) -> None:
        """Let one shared key of a column seal on. The others only open, until a reseal has moved what they seal."""
        if not row.shared or row.reencrypt:
            return
        if (row.owner, row.purpose) in self.shared:
            row.reencrypt = timezone.now()
        self.shared.add((row.owner, row.purpose))

    def _erase(self, rows: list[Erasure], part: bundle.Part) -> None:
        """Take every erasure that was carried out, and requests as the newest whole keyring has them: one may have been
        withdrawn since an older one was written."""
        for row in rows:
            if row.destroyed or not self.asked:
                known = self.erasures.setdefault(row.owner, row)
                if row.destroyed and not known.destroyed:
                    self.erasures[row.owner] = row
        self.asked = self.asked or (part.kind == "full" and part.last)

    def _keep_erasures(self) -> None:
        fields = [name for name in bundle.ERASURE_FIELDS if name != "owner"]
        Erasure.objects.bulk_create(
            self.erasures.values(), update_conflicts=True, unique_fields=["owner"], update_fields=fields
        )


_Found = list[tuple[Label, Place, str]]


def _labels(places: Sequence[Place], faults: list[str]) -> _Found:
    """Return what lies at the places, newest first; last what has not come yet, which a clock that was ahead dated."""
    found: _Found = []
    now = timezone.now()
    for place in places:
        try:
            names = Errand(place, place.list).result(SECONDS)
        except (SecurityError, OSError) as error:
            faults.append(str(error))
            continue
        for name in names:
            try:
                label = bundle.label(_get(place, name))
            except (SecurityError, OSError) as error:
                faults.append(f"{name} at {place.name}: {error}")
            else:
                found.append((label, place, name))
    return sorted(found, key=lambda each: (_has_come(each[0], now), each[0].created), reverse=True)


def _has_come(label: Label, now: datetime) -> bool:
    return label.created <= now + MARGIN


def _cutoff(found: _Found) -> datetime | None:
    """Return since when bundles are needed: the oldest of the places' newest whole keyrings. None: all of them."""
    starts, now = [], timezone.now()
    for name in {place.name for _, place, _ in found}:
        parts: defaultdict[uuid.UUID | None, list[Label]] = defaultdict(list)
        for label, place, _ in found:
            if place.name == name and label.part.kind == "full" and _has_come(label, now):
                parts[label.part.run].append(label)
        whole = [min(each.created for each in run) for run in parts.values() if _whole(run)]
        if not whole:
            return None
        starts.append(max(whole))
    return min(starts) - MARGIN if starts else None


def _whole(run: list[Label]) -> bool:
    ends = [label.part.part for label in run if label.part.last]
    return bool(ends) and {label.part.part for label in run} >= set(range(ends[0] + 1))


def _opened(found: _Found, cutoff: datetime | None, outcome: Recovered) -> Iterator[Bundle]:
    for label, place, name in found:
        if cutoff is not None and label.created < cutoff and not outcome.faults:
            continue
        try:
            opened = bundle.parse(_get(place, name), place.name)
        except (SecurityError, OSError) as error:
            outcome.faults.append(f"{name} at {place.name}: {error}")
            continue
        outcome.bundles += 1
        yield opened


def _get(place: Place, name: str) -> bytes:
    return Errand(place, lambda: place.get(name)).result(SECONDS)
