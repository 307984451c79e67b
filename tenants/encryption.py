"""What an organisation may know of its keys, in plain words; and what the keyring may ask of organisations."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from django.conf import settings
from django.db.models import Count
from django.utils import timezone

from security.keyring import erasure
from security.models import DataKey, Erasure, KeyEncryptionKey, Rewrap
from tenants.models import Organisation, Server

State = KeyEncryptionKey.State
DATABASES, FILES = "XChaCha20-Poly1305", "AES-256-GCM"
KINDS = (
    ("column:", "Secrets of your servers: signing keys, passwords and tokens that Hearth holds for them", DATABASES),
    ("backup.base", "Backups of your servers' databases", DATABASES),
    ("backup.wal", "The running record of changes between those backups", DATABASES),
    ("", "Backups of media and configuration, and exports", FILES),
)
"""Beginning of a data key's purpose → what it encrypts, and with which cipher. The first that fits counts."""
WHILE_SERVERS_LIVE = timedelta(days=1)


@dataclass(frozen=True)
class Encrypted:
    """One kind of data: what it is, the cipher, and how many data keys it has."""

    what: str
    cipher: str
    keys: int


@dataclass(frozen=True)
class Ending:
    """An erasure and its dates. Nobody can read the data any more from `complete_on` on; it may still move later."""

    row: Erasure
    complete_on: datetime
    copies_days: int
    """For how many days copies of Hearth's own database are kept: so long they may hold the destroyed keys."""


@dataclass(frozen=True)
class Encryption:
    """Everything that the page shows."""

    active: KeyEncryptionKey | None
    """None before the first server, and after an erasure."""
    since: datetime | None
    """When the first version was made."""
    in_hardware: bool
    """Whether the root key is in an HSM."""
    overdue: bool
    older: int
    """Earlier versions that still open something."""
    moving: Rewrap | None
    kinds: list[Encrypted]
    ending: Ending | None

    @property
    def keys(self) -> int:
        return sum(kind.keys for kind in self.kinds)

    @property
    def age_days(self) -> int:
        return (timezone.now() - self.active.created).days if self.active else 0


def of(organisation: Organisation) -> Encryption:
    """Read the state of an organisation's keys; four queries, however many there are."""
    versions = list(KeyEncryptionKey.objects.filter(owner=organisation.pk).defer("wrapped").order_by("version"))
    active = next((kek for kek in versions if kek.state == State.ACTIVE), None)
    end = Erasure.objects.filter(owner=organisation.pk).first()
    days = int(settings.HEARTH["HEARTH_DATABASE_COPIES_DAYS"])
    return Encryption(
        active=active,
        since=versions[0].created if versions else None,
        in_hardware=active is not None and active.root_id.startswith("hsm:"),
        overdue=active is not None and active.rotate_after < timezone.now(),
        older=sum(kek.state == State.DECRYPT_ONLY for kek in versions),
        moving=Rewrap.objects.filter(owner=organisation.pk, finished__isnull=True).first(),
        kinds=_kinds(organisation.pk),
        ending=Ending(end, erasure.complete_on(end), days) if end else None,
    )


def owner_names(owners: Collection[uuid.UUID]) -> Mapping[uuid.UUID, str]:
    """Tell the keyring how organisations are called (a seam)."""
    return dict(Organisation.objects.filter(pk__in=owners).values_list("pk", "name"))


def keep_keys_until(owner: uuid.UUID) -> datetime | None:
    """Tell the keyring that nothing is erased while a server lives (a seam): its date moves on, day by day."""
    if Server.objects.filter(organisation_id=owner, deleted__isnull=True).exists():
        return timezone.now() + WHILE_SERVERS_LIVE
    return None


def _kinds(owner: uuid.UUID) -> list[Encrypted]:
    counts: dict[int, int] = {}
    for purpose, count in DataKey.objects.filter(owner=owner).values_list("purpose").annotate(count=Count("id")):
        kind = next(place for place, (start, *_) in enumerate(KINDS) if purpose.startswith(start))
        counts[kind] = counts.get(kind, 0) + count
    return [Encrypted(*KINDS[kind][1:], keys=counts[kind]) for kind in sorted(counts)]
