"""Which server's backups go from which store to which, and how far they are."""

from __future__ import annotations

from django.db import models
from django.db.models import F, Q

from tenants.models import Server


class Copy(models.Model):
    """One server's backups on their way from a store to another. Written by `backups.copying` alone."""

    server = models.ForeignKey(Server, on_delete=models.CASCADE, related_name="copies")
    source = models.ForeignKey("backups.Store", on_delete=models.PROTECT, related_name="copied_from")
    target = models.ForeignKey("backups.Store", on_delete=models.PROTECT, related_name="copied_to")
    repair = models.BooleanField(default=False, help_text="Brings back what a first store lost, then ends.")
    next_turn = models.DateTimeField(null=True, help_text="Empty when nothing more is to be copied.")
    lease_until = models.DateTimeField(null=True)
    lease_owner = models.CharField(max_length=100, blank=True, default="")
    turned = models.DateTimeField(null=True, help_text="When both stores were last compared whole.")
    complete = models.BooleanField(default=False, help_text="That look left nothing to be copied.")
    seen_bytes = models.PositiveBigIntegerField(null=True, help_text="What the engine had stored before that look.")
    reached = models.DateTimeField(null=True, help_text="The target has everything up to here.")
    lag_objects = models.PositiveBigIntegerField(default=0)
    lag_bytes = models.PositiveBigIntegerField(default=0)
    copied_objects = models.PositiveBigIntegerField(default=0, help_text="Since the beginning.")
    copied_bytes = models.PositiveBigIntegerField(default=0, help_text="Since the beginning.")
    fault_code = models.CharField(max_length=40, blank=True)
    fault = models.TextField(blank=True)
    fault_since = models.DateTimeField(null=True)

    class Meta:
        verbose_name_plural = "copies"
        ordering = ["server"]
        constraints = [
            models.UniqueConstraint(fields=["server", "source", "target"], name="copy_once"),
            models.CheckConstraint(condition=~Q(source=F("target")), name="copy_to_another"),
        ]
        indexes = [
            models.Index(fields=["next_turn"], name="copy_due"),
            models.Index(fields=["lease_until"], name="copy_taken", condition=Q(lease_until__isnull=False)),
            models.Index(fields=["fault_since"], name="copy_at_fault", condition=Q(fault_since__isnull=False)),
        ]

    def __str__(self) -> str:
        return f"{self.server}: {self.source} to {self.target}"
