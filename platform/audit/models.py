"""The trail of what was done, by whom, on what. Rows are only added; a database trigger refuses the rest."""

from __future__ import annotations

from django.db import models


class AuditEvent(models.Model):
    """One verb that was carried out. Actors and objects are opaque identifiers: a row outlives what it speaks of."""

    id = models.BigAutoField(primary_key=True)
    at = models.DateTimeField(auto_now_add=True, db_index=True)
    actor_id = models.UUIDField(null=True, help_text="The person; empty for Hearth itself.")
    actor_label = models.CharField(max_length=254, help_text="How the actor was called at that moment.")
    verb = models.CharField(max_length=64, help_text="`noun.verb`, such as `server.create`.")
    object_type = models.CharField(max_length=64)
    object_id = models.CharField(max_length=64)
    object_label = models.CharField(max_length=255, blank=True)
    organisation_id = models.UUIDField(null=True)
    before = models.JSONField(default=dict)
    after = models.JSONField(default=dict)
    address = models.GenericIPAddressField(null=True)
    request_id = models.CharField(max_length=64, blank=True)

    class Meta:
        ordering = ["-id"]
        indexes = [
            models.Index(fields=["organisation_id", "-id"], name="audit_by_organisation"),
            models.Index(fields=["object_type", "object_id", "-id"], name="audit_by_object"),
        ]

    def __str__(self) -> str:
        return f"{self.verb} on {self.object_type} {self.object_label or self.object_id} by {self.actor_label}"
