"""What was asked to be brought back, how far that is, and what the instance that it went into holds now."""

from __future__ import annotations

import uuid

from django.db import models
from django.db.models import Q

from provisioning.models import Operation
from tenants.models import Server


class Restore(models.Model):
    """One restore. Its operation brings it back; later ones switch to it, go back, or remove the instance."""

    class Mode(models.TextChoices):
        SWITCH = "switch", "Replace the server"
        BESIDE = "beside", "Look into a copy beside it"
        EXPORT = "export", "Export"

    class Holds(models.TextChoices):
        UNFINISHED = "", "What was fetched so far"
        COPY = "copy", "What was brought back"
        BEFORE = "before", "What the server had before"
        GONE = "gone", "Nothing"

    operation = models.OneToOneField(Operation, primary_key=True, on_delete=models.CASCADE, related_name="restore")
    source = models.ForeignKey(Server, on_delete=models.PROTECT, related_name="restores")
    store = models.ForeignKey("backups.Store", on_delete=models.PROTECT, related_name="restores")
    point = models.CharField(max_length=40, blank=True, help_text="A restore point; empty for a moment.")
    moment = models.DateTimeField(null=True, help_text="The moment that is brought back: wanted, or the point's own.")
    mode = models.CharField(max_length=8, choices=Mode)
    asked_by = models.CharField(max_length=254, blank=True, default="", db_default="")
    version = models.CharField(
        max_length=20, blank=True, default="", db_default="", help_text="The Synapse version that runs on it."
    )
    version_before = models.CharField(
        max_length=20, blank=True, default="", db_default="", help_text="Of what the server had before."
    )
    instance = models.UUIDField(default=uuid.uuid4, help_text="The new instance that it goes into.")
    holds = models.CharField(
        max_length=8,
        choices=Holds,
        blank=True,
        default=Holds.UNFINISHED,
        db_default="",
        help_text="What the instance holds.",
    )
    address = models.CharField(
        max_length=255, blank=True, default="", db_default="", help_text="Of the instance, while it runs."
    )
    keep_until = models.DateTimeField(null=True, help_text="The instance is removed then.")
    grant = models.UUIDField(null=True, help_text="What opened the data keys; revoked when the operation ended.")
    grant_fence = models.PositiveBigIntegerField(default=0, db_default=0)
    called = models.BooleanField(
        default=False, db_default=False, help_text="The provider was asked for what the present step waits for."
    )
    begun = models.DateTimeField(null=True, help_text="When the first byte was asked for.")
    progressed = models.DateTimeField(null=True, help_text="When it was last seen to come on.")
    failures = models.PositiveSmallIntegerField(
        default=0, db_default=0, help_text="How often it failed by something that can pass, since it last came on."
    )
    failed_bytes = models.PositiveBigIntegerField(
        default=0, db_default=0, help_text="How far it was at most when that happened."
    )
    seconds = models.FloatField(null=True, help_text="From then to all of it on the disk.")
    done_bytes = models.PositiveBigIntegerField(default=0)
    total_bytes = models.PositiveBigIntegerField(default=0)
    seconds_left = models.PositiveIntegerField(null=True)
    recovered_to = models.DateTimeField(null=True, help_text="The last commit that was brought back.")
    switched = models.DateTimeField(null=True, help_text="Since when the server has what was brought back.")
    evidence = models.JSONField(default=dict, help_text="What the engine said of it when it was done.")

    class Meta:
        indexes = [
            models.Index(fields=["keep_until"], name="restore_over", condition=~Q(holds="gone")),
            models.Index(fields=["source"], name="restore_kept", condition=~Q(holds="gone")),
        ]

    def __str__(self) -> str:
        return f"{self.get_mode_display()}: {self.source}"
