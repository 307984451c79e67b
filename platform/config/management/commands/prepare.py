"""What must be done once before Hearth's processes start. The supervisor reads its output: one JSON object a line."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import redis
from django.conf import settings
from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandError
from django.db import DatabaseError, connection, transaction

from accounts.models import User
from accounts.services import make_staff_link, staff_link_needed
from backups.seeds import seed_backups
from config.connections.explain import explain
from config.env import ROOT
from config.schedule import HEARTBEAT
from provisioning.models import Heartbeat, Region
from security import reseal
from security.errors import SecurityError
from security.keyring import keks
from security.models import PLATFORM
from security.rootkey import ensure_root_key, key_files
from tenants.seeds import seed_plans

# Any number that nobody else locks: two that start at once migrate one after the other.
MIGRATION_LOCK = 0x48454152


class Command(BaseCommand):
    help = "Migrates, collects static files, seeds plans and the local region, and makes the first staff's link."
    requires_system_checks: list[str] = []

    def handle(self, *args: Any, **options: Any) -> None:  # noqa: ARG002 (Django's signature)
        try:
            self._step("Database is up to date", self._migrate)
            self._step("Keys", self._keys)
            self._step("Plans and region", self._seed)
            self._step("Static files", self._collect)
            self._link()
        except DatabaseError as error:
            text = explain(error, "HEARTH_DATABASE") or " ".join(str(error).split())
            raise CommandError(f"The database can't be used: {text} Nothing else was started.") from error
        except redis.RedisError as error:
            text = explain(error, "HEARTH_REDIS") or f"{error}."
            raise CommandError(f"Redis (REDIS_URL) can't be reached: {text} Nothing else was started.") from error

    def _say(self, **fields: Any) -> None:
        self.stdout.write(json.dumps(fields))
        self.stdout.flush()

    def _step(self, title: str, do: Callable[[], None]) -> None:
        began = time.monotonic()
        do()
        self._say(step=title, seconds=round(time.monotonic() - began, 2))

    def _key_file(self, key: Path) -> None:
        if key_files(key):  # after a rotation the first one may be gone; `_keys` looks for the one that is needed
            return
        if _in_use():
            raise CommandError(
                f"The root key {key} is missing, but the database has secrets that only it can open. Nothing was "
                "changed. Restore the key from a copy, or set HEARTH_KEY_FILE to where it is."
            )
        ensure_root_key(key)

    def _migrate(self) -> None:
        if not settings.HEARTH["HEARTH_HSM_MODULE"]:
            # With an HSM the database says which root key it needs, and `_keys` looks for it.
            self._key_file(Path(settings.HEARTH["HEARTH_KEY_FILE"]))
        patience = {"socket_timeout": 5, "socket_connect_timeout": 5}
        with redis.Redis.from_url(settings.REDIS_URL, **patience, **settings.REDIS_OPTIONS) as client:
            client.ping()
        with connection.cursor() as cursor:
            cursor.execute("select pg_advisory_lock(%s)", [MIGRATION_LOCK])
            try:
                call_command("migrate", interactive=False, verbosity=0)
            finally:
                cursor.execute("select pg_advisory_unlock(%s)", [MIGRATION_LOCK])

    def _keys(self) -> None:
        try:
            # Opened too: without the root key nothing works, and the start is where to say so.
            keks.open_kek(keks.ensure_kek(PLATFORM)).wipe()
            reseal.reseal()
        except SecurityError as error:
            raise CommandError(f"{error} Nothing else was started.") from error

    def _seed(self) -> None:
        seed_plans()
        with transaction.atomic():
            Region.objects.get_or_create(
                code="local",
                defaults={
                    "name": "This machine",
                    "provider": Region.Provider.LOCAL,
                    "base_domain": settings.HEARTH["HEARTH_BASE_DOMAIN"],
                },
            )
        seed_backups()
        # An old heartbeat must not vouch for a beat that has not started yet.
        Heartbeat.objects.filter(name=HEARTBEAT).delete()

    def _collect(self) -> None:
        stamp = Path(settings.STATIC_ROOT) / ".stamp"
        present = fingerprint()
        if stamp.exists() and stamp.read_text(encoding="ascii") == present:
            return
        call_command("collectstatic", interactive=False, verbosity=0, clear=True)
        stamp.write_text(present, encoding="ascii")

    def _link(self) -> None:
        if staff_link_needed():
            self._say(link="staff", path=make_staff_link())


def _in_use() -> bool:
    """Tell whether anybody has signed up: from then on there are secrets."""
    with connection.cursor() as cursor:
        return User._meta.db_table in connection.introspection.table_names(cursor) and User.objects.exists()


def fingerprint() -> str:
    """Return a hash that changes with our static files and with the packages that bring some."""
    digest = hashlib.sha256((ROOT / "requirements.txt").read_bytes())
    for path in sorted((ROOT / "static").rglob("*")):
        status = path.stat()
        digest.update(f"{path}:{status.st_size}:{status.st_mtime_ns}".encode())
    return digest.hexdigest()
