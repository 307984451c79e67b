"""Places of key bundles whose calls can be made to go wrong, and keys to publish there."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta

from django.db import connection
from django.db.models import F

from security.keyring import deks, keks
from security.keyring.deks import Context
from security.keyring.places import FolderPlace
from security.models import BundleFile, RootKey
from tests.security.test_bundle import lose_the_database

OWNER, OTHER, SERVER = uuid.uuid4(), uuid.uuid4(), uuid.uuid4()
Keys = dict[uuid.UUID, tuple[Context, bytes]]


@dataclass
class Faulty:
    """A real folder whose calls can be made to go wrong."""

    folder: FolderPlace
    before_put: Callable[[], None] = lambda: None
    before_get: Callable[[], None] = lambda: None
    stale: bytes | None = None
    stale_for: int = 1_000
    calls: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.folder.name

    def put(self, name: str, data: bytes) -> None:
        self.calls.append("put")
        self.before_put()
        self.folder.put(name, data)

    def get(self, name: str) -> bytes:
        self.calls.append("get")
        self.before_get()
        if self.stale is not None and self.stale_for > 0:
            self.stale_for -= 1
            return self.stale
        return self.folder.get(name)

    def list(self) -> Sequence[str]:
        return self.folder.list()

    def remove(self, name: str) -> None:
        self.calls.append("remove")
        self.folder.remove(name)


def make(count: int = 1, owner: uuid.UUID = OWNER) -> Keys:
    """Make data keys; return what must still be readable."""
    made: Keys = {}
    for number in range(count):
        context = Context(owner, "backup.wal", SERVER, f"wal/{number}")
        identity, key = deks.new_data_key(context)
        made[identity] = (context, bytes(key.value))
    return made


def lose() -> None:
    """Lose the database; the places stay."""
    lose_the_database()
    with connection.cursor() as cursor:
        cursor.execute("truncate security_bundlefile, security_erasure")


def opens(keys: Keys) -> bool:
    keks.cache.clear()
    return all(bytes(deks.open_data_key(name, context).value) == key for name, (context, key) in keys.items())


def age(days: float, **which: object) -> None:
    """Let bundles, and root keys, be older than they are."""
    RootKey.objects.update(created=F("created") - timedelta(days=days))
    for row in BundleFile.objects.filter(**which):
        created, lost = (date and date - timedelta(days=days) for date in (row.created, row.lost))
        BundleFile.objects.filter(pk=row.pk).update(created=created, lost=lost)
