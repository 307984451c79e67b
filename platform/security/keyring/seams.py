"""What higher layers know and the keyring must ask. They register in their app's `ready`."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from security.keyring.places import Place
from security.models import DataKey, KeyEncryptionKey, RootKey


@dataclass
class Seams:
    """Lists of callables. All of one list are asked; the strictest answer counts."""

    keep_keys_until: list[Callable[[uuid.UUID], datetime | None]] = field(default_factory=list)
    """Owner → until when their final backup must stay readable, or None."""
    copies_until: list[Callable[[uuid.UUID], datetime | None]] = field(default_factory=list)
    """Owner → until when a retained backup of the control plane, or a key bundle, may still hold their KEK, or None."""
    wrapped_elsewhere: list[Callable[[KeyEncryptionKey], int]] = field(default_factory=list)
    """KEK → how many things outside the keyring's tables it still wraps."""
    root_needed: list[Callable[[RootKey], int]] = field(default_factory=list)
    """Root key → how many retained things (bundles) only it opens."""
    reencrypt: list[Callable[[uuid.UUID, Sequence[DataKey]], None]] = field(default_factory=list)
    """Owner and data keys of a compromise: what they encrypt needs other keys. Called inside the transaction."""
    overdue: list[Callable[[Sequence[str]], None]] = field(default_factory=list)
    """One sentence for each key past its rotation: raise an alert."""
    owner_names: list[Callable[[Collection[uuid.UUID]], Mapping[uuid.UUID, str]]] = field(default_factory=list)
    """Owners → the names that people know; whoever is not known is left out."""
    places_late: list[Callable[[Sequence[str]], None]] = field(default_factory=list)
    """One sentence for each place that gets no whole key bundle: raise an alert."""
    owner_of_server: list[Callable[[uuid.UUID], uuid.UUID | None]] = field(default_factory=list)
    """Server → the organisation it belongs to, or None for one that is gone, deleted or unknown."""
    places: list[Callable[[], Sequence[Place]]] = field(default_factory=list)
    """→ where key bundles are written: a manifest may name a data key only when each of them holds it."""


seams = Seams()


def latest(answers: list[datetime | None]) -> datetime | None:
    """Return the latest date that was given, or None."""
    return max((each for each in answers if each is not None), default=None)
