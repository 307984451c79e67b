"""The internal certificate authority. Its private key is sealed like every other secret of the platform."""

from __future__ import annotations

import uuid

from django.db import models
from django.utils import timezone

from security.fields import SealedTextField


class Authority(models.Model):
    """One authority. The newest that may sign does; all that have not expired are trusted."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    certificate = models.TextField(help_text="PEM. Public.")
    key = SealedTextField(help_text="PEM, of the platform itself.")
    created = models.DateTimeField(default=timezone.now, editable=False)
    not_before = models.DateTimeField()
    not_after = models.DateTimeField()
    signs_from = models.DateTimeField(help_text="Before, it is only trusted: everybody must have learnt it first.")

    class Meta:
        ordering = ["-signs_from"]
        verbose_name_plural = "authorities"

    def __str__(self) -> str:
        return f"internal authority {str(self.id)[:8]}"
