"""`manage.py backups expire [--dry-run] [--server ID]`: look through stores now, and remove what has expired."""

from __future__ import annotations

import uuid
from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from backups import expiring
from backups.engine.stores.base import StoreError
from backups.models import Shelf
from security.errors import SecurityError


class Command(BaseCommand):
    """Staff's way to what the clock does by itself."""

    help = "Looks through stores of backups and removes what has expired, as a worker does once a day."

    def add_arguments(self, parser: CommandParser) -> None:
        verbs = parser.add_subparsers(dest="verb", required=True)
        expire = verbs.add_parser("expire", help="remove what no kept restore point and no second of the window needs")
        expire.add_argument("--dry-run", action="store_true", help="only say what would be removed")
        expire.add_argument("--server", type=uuid.UUID, help="this server alone")

    def handle(self, *_: Any, **given: Any) -> None:
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
