"""Mails that Hearth sends: each is a row first and leaves by a task, so a dead mail server loses nothing."""

from __future__ import annotations

import uuid

from django.db import models

from security.fields import SealedTextField


class Mail(models.Model):
    """One mail to one recipient. Its text is sealed (it may hold a one-time link) and wiped once SMTP took it."""

    class State(models.TextChoices):
        QUEUED = "queued", "Queued"
        SENT = "sent", "Sent"
        INBOX = "inbox", "Kept in the inbox page"
        FAILED = "failed", "Given up"

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    created = models.DateTimeField(auto_now_add=True, db_index=True)
    recipient = models.EmailField()
    subject = models.CharField(max_length=255)
    text = SealedTextField()
    state = models.CharField(max_length=8, choices=State, default=State.QUEUED)
    attempts = models.PositiveSmallIntegerField(default=0)
    next_attempt = models.DateTimeField(auto_now_add=True)
    error = models.TextField(blank=True)
    sent = models.DateTimeField(null=True)

    class Meta:
        ordering = ["-created"]
        indexes = [models.Index(fields=["next_attempt"], name="mail_queued", condition=models.Q(state="queued"))]

    def __str__(self) -> str:
        return f"{self.subject} to {self.recipient}"
