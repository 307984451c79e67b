"""What was asked to be given out of a backup, and the archive that came of it."""

from __future__ import annotations

from datetime import datetime

from django.db import models
from django.db.models import Q
from django.utils import timezone

from backups.restoring.models import Restore
from provisioning.models import Operation


class Export(models.Model):
    """One export. Its restore brings the data back for it, into an instance that nothing ever runs on."""

    class What(models.TextChoices):
        EVERYTHING = "everything", "Everything"
        ROOM = "room", "A room's files"
        TABLES = "tables", "Tables"

    class Format(models.TextChoices):
        CSV = "csv", "CSV, for spreadsheets"
        JSON = "jsonl", "JSON, a line for each row"

    restore = models.OneToOneField(Restore, primary_key=True, on_delete=models.CASCADE, related_name="export")
    what = models.CharField(max_length=10, choices=What)
    room = models.CharField(max_length=255, blank=True, help_text="Of the room whose files are wanted.")
    tables = models.JSONField(default=list, blank=True)
    format = models.CharField(max_length=5, choices=Format, default=Format.CSV)
    latest = models.BooleanField(
        default=False, help_text="Of the latest that the store has; its restore's moment is about when that is."
    )
    object = models.CharField(max_length=120, blank=True, help_text="The sealed archive in the store; empty: none yet.")
    key = models.UUIDField(null=True, help_text="Its data key.")
    stored_bytes = models.PositiveBigIntegerField(default=0, help_text="As sealed.")
    bytes = models.PositiveBigIntegerField(default=0, help_text="Of the archive, as people get it.")
    files = models.PositiveIntegerField(default=0)
    ready = models.DateTimeField(null=True, help_text="Since when it can be downloaded.")
    keep_until = models.DateTimeField(null=True, help_text="The archive is removed then.")
    removed = models.DateTimeField(null=True, help_text="When nothing was left of it.")
    downloads = models.PositiveIntegerField(default=0)
    downloaded = models.DateTimeField(null=True, help_text="When somebody last began to download it.")

    class Meta:
        indexes = [models.Index(fields=["keep_until"], name="export_over", condition=Q(removed__isnull=True))]

    def __str__(self) -> str:
        return f"{self.get_what_display()}: {self.restore.source}"

    @property
    def is_open(self) -> bool:
        """Whether it is still being made."""
        return self.restore.operation.state in Operation.OPEN

    def can_be_downloaded(self, at: datetime | None = None) -> bool:
        """Whether the archive is there, and not about to go."""
        over = self.keep_until is None or self.keep_until <= (at or timezone.now())
        return self.ready is not None and self.removed is None and not over

    @property
    def has_failed(self) -> bool:
        """Whether it ended without an archive, and not because somebody cancelled it."""
        return self.restore.operation.state == Operation.State.FAILED

    @property
    def file_name(self) -> str:
        """What the download is called."""
        at = self.restore.moment
        day = f"-{at:%Y-%m-%d}" if at else ""
        return f"{self.restore.source.server_name}{day}-{self.what}.tar".replace(":", "-")
