"""What was tried with backups and what came of it: single proofs, and drills of many servers."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime

from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models
from django.db.models import Q

from provisioning.models import Region
from tenants.models import Server

RTO_GOAL, RPO_GOAL = 4 * 3600, 15 * 60
"""Seconds that are promised: until a server is back, and of work that may be lost."""
READ_FIRST = datetime(2000, 1, 1, tzinfo=UTC)
"""As the date of a full read: before all that are only due."""
UNDER_WAY = Q(instance__isnull=False, removed__isnull=True)
"""Proofs whose throw-away instance takes up room."""


class Drill(models.Model):
    """A lost region, tried out: its servers are brought back elsewhere, most important first, against the clock."""

    class Result(models.TextChoices):
        PASSED = "passed", "Passed"
        FAILED = "failed", "Failed"
        MISSED = "missed", "Did not take place"

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    name = models.CharField(max_length=120)
    region = models.ForeignKey(
        Region, on_delete=models.PROTECT, related_name="drills", help_text="The one that is taken as lost."
    )
    target = models.ForeignKey(
        Region, on_delete=models.PROTECT, related_name="drills_into", help_text="Where its servers are brought back."
    )
    servers = models.ManyToManyField(
        Server, blank=True, related_name="drills", help_text="Empty: all of the region that have a restore point."
    )
    planned = models.DateTimeField(help_text="When it begins. One that has not begun a day later has not taken place.")
    repeat_days = models.PositiveSmallIntegerField(
        default=0, validators=[MaxValueValidator(366)], help_text="Plan the next one so many days later. 0: once."
    )
    at_once = models.PositiveSmallIntegerField(
        default=2, validators=[MinValueValidator(1), MaxValueValidator(100)], help_text="Servers at the same time."
    )
    rto_goal = models.PositiveIntegerField(
        default=RTO_GOAL, validators=[MinValueValidator(60)], help_text="Seconds from the loss until a server is back."
    )
    rpo_goal = models.PositiveIntegerField(
        default=RPO_GOAL, validators=[MinValueValidator(1)], help_text="Seconds of work that a server may lose."
    )
    begun = models.DateTimeField(null=True, help_text="The moment of the loss.")
    ended = models.DateTimeField(null=True)
    result = models.CharField(max_length=7, choices=Result, blank=True, help_text="Empty while it is planned or runs.")
    stopped_by = models.CharField(max_length=254, blank=True, help_text="Who broke it off.")
    summary = models.TextField(blank=True)

    class Meta:
        ordering = ["-planned"]
        indexes = [models.Index(fields=["planned"], name="drill_open", condition=Q(result=""))]

    def __str__(self) -> str:
        return self.name


class Proof(models.Model):
    """That something was tried and what came of it: evidence, kept for 13 months.

    While `result` is empty a worker carries it out, turn by turn, under a lease (`backups.proofs.leases`).
    """

    class Kind(models.TextChoices):
        LISTING = "listing", "All objects are there"
        READING = "reading", "Every byte was read"
        RECOVERY = "recovery", "A server was brought back"

    class Result(models.TextChoices):
        PASSED = "passed", "Passed"
        FAILED = "failed", "Failed"
        MISSED = "missed", "Did not take place"

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    server = models.ForeignKey(Server, on_delete=models.PROTECT, related_name="proofs")
    kind = models.CharField(max_length=10, choices=Kind)
    point = models.CharField(max_length=40, blank=True)
    begun = models.DateTimeField()
    ended = models.DateTimeField(null=True)
    result = models.CharField(max_length=7, choices=Result, blank=True, help_text="Empty while it runs.")
    rto_seconds = models.FloatField(null=True, help_text="From the beginning to passed protocol checks.")
    rpo_seconds = models.FloatField(
        null=True,
        help_text="How much of the newest work was not stored when it began: what a loss then would have cost.",
    )
    summary = models.TextField(blank=True)
    evidence = models.JSONField(default=dict)
    # How it is carried out.
    step = models.CharField(max_length=12, blank=True)
    run_after = models.DateTimeField(null=True, help_text="Not taken before this moment.")
    lease_owner = models.CharField(max_length=100, blank=True, default="", db_default="")
    lease_until = models.DateTimeField(null=True)
    fence = models.PositiveBigIntegerField(
        default=0, db_default=0, help_text="Rises when somebody takes over from a worker that was lost."
    )
    failures = models.PositiveSmallIntegerField(default=0, db_default=0, help_text="Failed tries of the present step.")
    # What is brought back, and to where.
    drill = models.ForeignKey(Drill, null=True, on_delete=models.CASCADE, related_name="proofs")
    place = models.PositiveIntegerField(default=0, db_default=0, help_text="Its turn in a drill.")
    store = models.ForeignKey("backups.Store", null=True, on_delete=models.PROTECT, related_name="proofs")
    region = models.ForeignKey(Region, null=True, on_delete=models.PROTECT, related_name="proofs")
    moment = models.DateTimeField(
        null=True, help_text="The moment that is brought back; None: the restore point's own."
    )
    instance = models.UUIDField(null=True, help_text="The throw-away instance that it goes into.")
    removed = models.DateTimeField(null=True, help_text="When that instance was gone.")
    grant = models.UUIDField(null=True)
    grant_fence = models.PositiveBigIntegerField(default=0, db_default=0)
    done_bytes = models.PositiveBigIntegerField(default=0, db_default=0)
    total_bytes = models.PositiveBigIntegerField(default=0, db_default=0)

    class Meta:
        ordering = ["-begun"]
        constraints = [
            models.UniqueConstraint(fields=["server", "kind"], condition=Q(result=""), name="proof_one_open_of_a_kind")
        ]
        indexes = [
            models.Index(fields=["server", "-begun"], name="proof_by_server"),
            models.Index(fields=["begun"], name="proof_by_age"),
            models.Index(fields=["run_after"], name="proof_due", condition=Q(result="")),
            # Most rows are listings that found nothing. These hold the few that alarms and metrics look for.
            models.Index(fields=["begun"], name="proof_not_passed", condition=Q(result__in=["failed", "missed"])),
            models.Index(
                fields=["begun"],
                name="proof_tried",
                include=["kind", "result", "rto_seconds"],
                condition=Q(kind__in=["reading", "recovery"]),
            ),
            models.Index(
                fields=["ended"],
                name="proof_leaves_an_instance",
                condition=Q(instance__isnull=False, removed__isnull=True),
            ),
        ]

    def __str__(self) -> str:
        return f"{self.get_kind_display()}: {self.server}"
