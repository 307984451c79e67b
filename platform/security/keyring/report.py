"""Every key's age, next rotation, and what is overdue: for the command, the staff page, the metric and the alert."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from django.conf import settings
from django.db.models import Count, QuerySet
from django.utils import timezone

from security.errors import KeySourceError
from security.keyring import erasure, roots
from security.keyring.seams import seams
from security.models import PLATFORM, Erasure, KeyEncryptionKey, Rewrap, RootKey, owner_name
from security.sources.keyfile import KeyFileSource


@dataclass(frozen=True)
class KeyLine:
    """One key of the report."""

    key: str
    state: str
    age_days: int
    next_rotation: datetime | None
    overdue: bool
    data_keys: int | None = None


@dataclass(frozen=True)
class Report:
    """All of it; `as_json` gives plain types."""

    at: datetime
    rotation_days: int
    sources: list[dict[str, str]]
    keys: list[KeyLine]
    rewraps: list[dict[str, Any]]
    erasures: list[dict[str, Any]]

    @property
    def overdue(self) -> list[KeyLine]:
        return [line for line in self.keys if line.overdue]

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"overdue": len(self.overdue)}


def report() -> Report:
    """Read everything that the report says. An HSM that is away is said so, and does not stop it."""
    now = timezone.now()
    keks = list(KeyEncryptionKey.objects.annotate(count=Count("data_keys")).order_by("owner", "version"))
    runs = list(Rewrap.objects.filter(finished__isnull=True))
    ends = list(Erasure.objects.order_by("requested"))
    known = names([*(kek.owner for kek in keks), *(run.owner for run in runs), *(end.owner for end in ends)])
    return Report(
        at=now,
        rotation_days=min(int(settings.HEARTH["HEARTH_KEY_ROTATION_DAYS"]), roots.LONGEST),
        sources=[_source(kind) for kind in roots.sources()],
        keys=[_root(root, now) for root in RootKey.objects.order_by("created")]
        + [_kek(kek, known[kek.owner], now) for kek in keks],
        rewraps=[{"owner": known[run.owner], "done": run.done, "total": run.total, "error": run.error} for run in runs],
        erasures=[
            {
                "owner": known[row.owner],
                "destroy_after": row.destroy_after,
                "destroyed": row.destroyed,
                "complete_on": erasure.complete_on(row),
                "completed": row.completed,
            }
            for row in ends
        ],
    )


def overdue_keks() -> QuerySet[KeyEncryptionKey]:
    """Return the active KEKs past their rotation."""
    return KeyEncryptionKey.objects.filter(state=KeyEncryptionKey.State.ACTIVE, rotate_after__lt=timezone.now())


def overdue_roots() -> QuerySet[RootKey]:
    return RootKey.objects.filter(state=RootKey.State.ACTIVE, rotate_after__lt=timezone.now())


def sentences() -> list[str]:
    """Return one sentence for each key that is overdue: first the root keys, which only a person replaces."""
    keks = list(overdue_keks())
    known = names(kek.owner for kek in keks)
    late = [(f"The root key {root.id}", root.rotate_after, "rotate-root") for root in overdue_roots()]
    late += [(f"The key version {kek.version} of {known[kek.owner]}", kek.rotate_after, "rotate") for kek in keks]
    return [
        f"{key} was to be replaced by {due:%d %B %Y}. The data stays readable. Run: manage.py keys {verb}"
        for key, due, verb in late
    ]


def names(owners: Iterable[uuid.UUID]) -> dict[uuid.UUID, str]:
    """Return how people call these owners, where a higher layer knows; one question for all of them."""
    asked = set(owners)
    known: dict[uuid.UUID, str] = {}
    for ask in seams.owner_names:
        known |= ask(asked - {PLATFORM})
    return {owner: known.get(owner) or owner_name(owner) for owner in asked}


def name(owner: uuid.UUID) -> str:
    """Return how people call an owner."""
    return names([owner])[owner]


def to_back_up() -> list[str]:
    """Return what a person must keep so that nothing is ever lost, one sentence each."""
    lines = []
    for root in RootKey.objects.exclude(state=RootKey.State.RETIRED).order_by("created"):
        try:
            lines.append(_keep(root))
        except KeySourceError as error:
            lines.append(f"NOT FOUND: {error}")
    lines.append("The database, or a key bundle (manage.py keys bundle): the keys that the root keys protect.")
    return lines


def _keep(root: RootKey) -> str:
    origin = roots.source(root.kind)
    if root.id not in origin.roots():
        raise KeySourceError(f"the root key {root.id}. What it protects can't be read. Bring it back from your backup.")
    if isinstance(origin, KeyFileSource):
        return f"{origin.file_of(root.id)} (root key {root.id}), apart from the database: who has both can read all."
    place = ", ".join(f"{word} {value}" for word, value in origin.describe().items() if word in ("token", "slot"))
    return f"The HSM's {place} (root key {root.id}) by your HSM's own backup: the key can't be copied out."


def _source(kind: str) -> dict[str, str]:
    described = dict(roots.source(kind).describe())
    try:
        return described | {"root keys": str(len(roots.source(kind).roots())), "fault": ""}
    except KeySourceError as error:
        return described | {"root keys": "?", "fault": str(error)}


def _root(root: RootKey, now: datetime) -> KeyLine:
    active = root.state == RootKey.State.ACTIVE
    return KeyLine(
        key=f"root key {root.id}",
        state=root.state,
        age_days=(now - root.created).days,
        next_rotation=root.rotate_after if active else None,
        overdue=active and root.rotate_after < now,
    )


def _kek(kek: Any, owner: str, now: datetime) -> KeyLine:
    active = kek.state == KeyEncryptionKey.State.ACTIVE
    return KeyLine(
        key=f"version {kek.version} of {owner}",
        state=kek.state,
        age_days=(now - kek.created).days,
        next_rotation=kek.rotate_after if active else None,
        overdue=active and kek.rotate_after < now,
        data_keys=kek.count,
    )
