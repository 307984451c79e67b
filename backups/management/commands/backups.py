"""`manage.py backups expire [--dry-run] [--server ID]`: look through stores now, and remove what has expired.
`manage.py backups revive SERVER`: make a deleted server again, empty, for its kept backup to be restored into it."""

from __future__ import annotations

import uuid
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from audit.services import SYSTEM
from backups import expiring
from backups.engine.stores.base import StoreError
from backups.models import Shelf
from backups.restoring import revival
from security.errors import SecurityError
from tenants.errors import Refused
from tenants.models import Server


class Command(BaseCommand):
    """Staff's way to what the clock does by itself."""

    help = "Removes backups that have expired, as a worker does once a day; or makes a deleted server again."

    def add_arguments(self, parser: CommandParser) -> None:
        verbs = parser.add_subparsers(dest="verb", required=True)
        expire = verbs.add_parser("expire", help="remove what no kept restore point and no second of the window needs")
        expire.add_argument("--dry-run", action="store_true", help="only say what would be removed")
        expire.add_argument("--server", type=uuid.UUID, help="this server alone")
        reviving = verbs.add_parser("revive", help="make a deleted server again, whose final backup is kept")
        reviving.add_argument("server", type=uuid.UUID, help="its id")

    def handle(self, *_: Any, **given: Any) -> None:
        if given["verb"] == "revive":
            self._revive(given["server"])
        else:
            self._expire(given)

    def _revive(self, server: uuid.UUID) -> None:
        try:
            point = revival.revive(SYSTEM, server=Server.objects.select_related("organisation").get(pk=server))
        except Server.DoesNotExist:
            raise CommandError("There is no such server. Nothing was changed.") from None
        except Refused as refusal:
            raise CommandError(refusal.message) from None
        self.stdout.write(
            f"The server is made again, empty. When it is ready an owner restores it on its page, under Backups: the "
            f"newest restore point is of {point.at:%Y-%m-%d %H:%M:%S} UTC."
        )

    def _expire(self, given: dict[str, Any]) -> None:
        rows = Shelf.objects.filter(next_turn__isnull=False).select_related("server", "store").order_by("pk")
        if given["server"]:
            rows = rows.filter(server=given["server"])
        for shelf in rows.iterator():
            try:
                done = expiring.turn(shelf, dry_run=given["dry_run"])
            except (StoreError, SecurityError) as error:
                self.stderr.write(f"{shelf}: {error}")
                continue
            self._say(shelf, done, dry_run=given["dry_run"])

    def _say(self, shelf: Shelf, done: expiring.Turn, *, dry_run: bool) -> None:
        if done.expired is None:
            self.stdout.write(f"{shelf}: {done.held}")
            return
        verb = "would be removed" if dry_run else "removed"
        found = done.expired
        self.stdout.write(
            f"{shelf}: {len(found.removed)} objects {verb}, {len(found.waiting)} wait for a day, "
            f"{len(found.kept_points)} restore points kept."
        )
        for name in found.blocked:
            self.stdout.write(f"  {name} can't be read, so what it may need is kept.")
