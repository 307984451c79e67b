"""Where backups lie, how often they are made, what there is to restore, and the proof that it can be restored."""

from __future__ import annotations

import uuid

from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models
from django.db.models import F, Q

from backups.copying.models import Copy
from backups.exporting.models import Export
from backups.proofs.models import Drill, Proof
from backups.restoring.models import Restore
from provisioning.models import Region
from security.fields import SealedTextField
from tenants.models import Plan, Server

__all__ = [
    "LEAST_RETENTION", "Alarm", "Copy", "Drill", "Export", "Line", "Order", "Policy", "Proof", "RegionStores",
    "Restore", "RestorePoint", "ServerBackups", "Shelf", "Store",
]  # fmt: skip
LEAST_RETENTION = 30
"""Days that no policy goes below: people notice a loss weeks later."""


class Store(models.Model):
    """A folder or a bucket that holds backups, one prefix a server."""

    class Kind(models.TextChoices):
        FOLDER = "folder", "Folder on this machine"
        S3 = "s3", "Bucket (S3)"

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    code = models.SlugField(unique=True, max_length=40)
    name = models.CharField(max_length=80)
    kind = models.CharField(max_length=6, choices=Kind)
    folder = models.CharField(max_length=400, blank=True, help_text="Its whole path; kept closed to everybody else.")
    endpoint = models.CharField(max_length=300, blank=True, help_text="https address of the S3 server.")
    bucket = models.CharField(max_length=63, blank=True)
    location = models.CharField(max_length=63, blank=True, help_text="The S3 region, such as eu-central-1.")
    access_key = models.CharField(max_length=200, blank=True, help_text="Of Hearth: it may remove what has expired.")
    secret_key = SealedTextField(row=("id",), null=True)
    agent_access_key = models.CharField(
        max_length=200, blank=True, help_text="Of agents: may write and read, never remove."
    )
    agent_secret_key = SealedTextField(row=("id",), null=True)
    findings = models.JSONField(default=list, help_text="What the last check found: versions, locks, encryption.")
    checked = models.DateTimeField(null=True)
    fault = models.TextField(blank=True, help_text="Why the last check failed; empty when it did not.")

    class Meta:
        ordering = ["code"]
        constraints = [
            models.CheckConstraint(
                condition=(Q(kind="folder") & ~Q(folder="")) | (Q(kind="s3") & ~Q(endpoint="") & ~Q(bucket="")),
                name="store_has_its_place",
            )
        ]

    def __str__(self) -> str:
        return self.name


class RegionStores(models.Model):
    """Where the servers of a region are backed up to, and the second place that each backup is copied to."""

    region = models.OneToOneField(Region, primary_key=True, on_delete=models.CASCADE, related_name="stores")
    first = models.ForeignKey(Store, on_delete=models.PROTECT, related_name="first_of")
    second = models.ForeignKey(Store, null=True, blank=True, on_delete=models.PROTECT, related_name="second_of")
    copy_megabytes = models.PositiveIntegerField(
        null=True,
        blank=True,
        validators=[MinValueValidator(1)],
        help_text="MB a second that all copies between the two take at most. Empty: no bound.",
    )

    class Meta:
        verbose_name = verbose_name_plural = "stores of a region"
        constraints = [models.CheckConstraint(condition=Q(second=None) | ~Q(second=F("first")), name="stores_are_two")]

    def __str__(self) -> str:
        return f"{self.region}: {self.first}"


class Policy(models.Model):
    """How often, and for how long. A server's own counts before its plan's, that before the one of neither."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    plan = models.OneToOneField(Plan, null=True, blank=True, on_delete=models.CASCADE, related_name="backup_policy")
    server = models.OneToOneField(Server, null=True, blank=True, on_delete=models.CASCADE, related_name="backup_policy")
    every_hours = models.PositiveSmallIntegerField(
        default=24, validators=[MinValueValidator(1), MaxValueValidator(168)], help_text="Hours between base backups."
    )
    hour = models.PositiveSmallIntegerField(
        null=True, blank=True, validators=[MaxValueValidator(23)], help_text="UTC. Empty: spread over the day."
    )
    window_days = models.PositiveSmallIntegerField(
        default=7, validators=[MinValueValidator(1)], help_text="Days within which any second can be restored."
    )
    retention_days = models.PositiveSmallIntegerField(
        default=LEAST_RETENTION,
        validators=[MinValueValidator(LEAST_RETENTION)],
        help_text="Days that daily restore points are kept.",
    )
    prove_days = models.PositiveSmallIntegerField(
        default=7, validators=[MinValueValidator(1), MaxValueValidator(31)], help_text="Days between recovery tests."
    )
    final_days = models.PositiveSmallIntegerField(
        default=LEAST_RETENTION,
        validators=[MinValueValidator(LEAST_RETENTION)],
        help_text="Days that the final backup outlives a deleted server.",
    )

    class Meta:
        verbose_name_plural = "policies"
        constraints = [
            models.CheckConstraint(condition=Q(plan=None) | Q(server=None), name="policy_of_one_thing"),
            models.UniqueConstraint(
                models.Value(1), condition=Q(plan=None, server=None), name="policy_one_for_all_others"
            ),
            models.CheckConstraint(
                condition=Q(
                    retention_days__gte=LEAST_RETENTION,
                    final_days__gte=LEAST_RETENTION,
                    every_hours__range=(1, 168),
                    window_days__gte=1,
                    window_days__lte=F("retention_days"),
                ),
                name="policy_keeps_enough",
            ),
        ]

    def __str__(self) -> str:
        return f"Backups of {self.server or self.plan or 'all other servers'}"


class ServerBackups(models.Model):
    """What a server's engine told last, and what its names are hashed with. One row a server, written by `sync`."""

    server = models.OneToOneField(Server, primary_key=True, on_delete=models.CASCADE, related_name="backups")
    name_key = SealedTextField(
        row=("server_id",), owner="server.organisation_id", null=True, help_text="Base64: media's names in the store."
    )
    line = models.CharField(max_length=40, blank=True, help_text="The gapless history that is being written.")
    begun = models.DateTimeField(null=True, help_text="First moment of that line which can be restored.")
    until = models.DateTimeField(null=True, help_text="Every commit up to here can be restored.")
    media_until = models.DateTimeField(null=True, help_text="Media up to here can be restored.")
    copied_until = models.DateTimeField(null=True, help_text="The second store has everything up to here.")
    copy_lag_bytes = models.PositiveBigIntegerField(default=0)
    stored_bytes = models.PositiveBigIntegerField(default=0, help_text="In the first store.")
    spool_bytes = models.PositiveBigIntegerField(default=0, help_text="WAL on the server's disk that waits.")
    fault_code = models.CharField(max_length=40, blank=True)
    fault = models.TextField(blank=True, help_text="What is wrong now, for a person.")
    fault_since = models.DateTimeField(null=True)
    reported = models.DateTimeField(null=True, help_text="When the engine last spoke.")
    next_base = models.DateTimeField(null=True)
    next_proof = models.DateTimeField(null=True, help_text="When a recovery test is due.")
    next_reading = models.DateTimeField(null=True, help_text="When every byte of a restore point is read again.")

    class Meta:
        verbose_name = verbose_name_plural = "server backups"
        indexes = [
            models.Index(fields=["next_base"], name="backups_base_due"),
            models.Index(fields=["next_proof"], name="backups_proof_due"),
            models.Index(fields=["next_reading"], name="backups_reading_due"),
            models.Index(fields=["reported"], name="backups_silent"),
        ]

    def __str__(self) -> str:
        return f"Backups of {self.server}"


class RestorePoint(models.Model):
    """A restore point that lies whole in a store. The manifest there is the truth; this row is how pages find it."""

    class State(models.TextChoices):
        WHOLE = "whole", "Whole"
        DAMAGED = "damaged", "Damaged"
        GONE = "gone", "Expired"

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    server = models.ForeignKey(Server, on_delete=models.PROTECT, related_name="restore_points")
    identity = models.CharField(max_length=40, help_text="Its name in the store; begins with its time.")
    kind = models.CharField(max_length=20)
    at = models.DateTimeField(help_text="The moment it brings back.")
    line = models.CharField(max_length=40)
    database_bytes = models.PositiveBigIntegerField(default=0)
    media_bytes = models.PositiveBigIntegerField(default=0)
    media_files = models.PositiveIntegerField(default=0)
    stored_bytes = models.PositiveBigIntegerField(default=0, help_text="Of its own objects, compressed.")
    synapse_version = models.CharField(max_length=20, blank=True)
    signing_key_id = models.CharField(max_length=60, blank=True)
    seconds = models.FloatField(null=True, help_text="How long it took to make.")
    state = models.CharField(max_length=8, choices=State, default=State.WHOLE)
    damage = models.TextField(blank=True)
    listed = models.DateTimeField(null=True, help_text="When all its objects were last found in a listing.")
    read = models.DateTimeField(null=True, help_text="When every byte of it was last read and authenticated.")
    proved = models.DateTimeField(null=True, help_text="When a server was last brought back from it.")
    copied = models.DateTimeField(null=True, help_text="When the second store had all of it.")
    keep_until = models.DateTimeField(null=True, help_text="Kept at least until then.")

    class Meta:
        ordering = ["-at"]
        constraints = [models.UniqueConstraint(fields=["server", "identity"], name="point_once")]
        indexes = [
            models.Index(fields=["server", "-at"], name="point_by_server"),
            models.Index(fields=["keep_until"], name="point_expires", condition=~Q(state="gone")),
        ]

    def __str__(self) -> str:
        return f"{self.server}, {self.at:%Y-%m-%d %H:%M:%S} UTC"


class Line(models.Model):
    """A gapless history of one server's database: any second between its ends can be restored."""

    server = models.ForeignKey(Server, on_delete=models.PROTECT, related_name="lines")
    identity = models.CharField(max_length=40)
    begun = models.DateTimeField(null=True, help_text="First moment that can be restored; None before its first base.")
    until = models.DateTimeField(null=True)
    ended = models.CharField(max_length=40, blank=True, help_text="Why it ended, such as `SlotLost`; empty while open.")
    moments = models.PositiveBigIntegerField(
        default=0, db_default=0, help_text="How many moments of it are stored: one that lacks later was lost."
    )

    class Meta:
        ordering = ["-identity"]
        constraints = [models.UniqueConstraint(fields=["server", "identity"], name="line_once")]

    def __str__(self) -> str:
        return self.identity


class Order(models.Model):
    """Something that a server's engine is to do; it hears of it at its next call, and answers by its id."""

    class State(models.TextChoices):
        WAITING = "waiting", "Waiting"
        TAKEN = "taken", "In progress"
        DONE = "done", "Done"
        FAILED = "failed", "Failed"

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    server = models.ForeignKey(Server, on_delete=models.CASCADE, related_name="backup_orders")
    kind = models.CharField(max_length=20, help_text="`backup`, `final`")
    reason = models.CharField(max_length=20, help_text="The restore point's kind, such as `daily` or `manual`.")
    state = models.CharField(max_length=8, choices=State, default=State.WAITING)
    made = models.DateTimeField(auto_now_add=True)
    taken = models.DateTimeField(null=True)
    ended = models.DateTimeField(null=True)
    done_bytes = models.PositiveBigIntegerField(default=0)
    total_bytes = models.PositiveBigIntegerField(default=0, help_text="0 while it is unknown.")
    point = models.CharField(max_length=40, blank=True)
    error = models.TextField(blank=True)

    class Meta:
        ordering = ["-made"]
        constraints = [
            models.UniqueConstraint(
                fields=["server", "kind"], condition=Q(state__in=["waiting", "taken"]), name="order_one_open_of_a_kind"
            )
        ]

    def __str__(self) -> str:
        return f"{self.kind} of {self.server}"


class Shelf(models.Model):
    """What one store holds of one server: when Hearth last looked through it, and when it does so next."""

    server = models.ForeignKey(Server, on_delete=models.PROTECT, related_name="shelves")
    store = models.ForeignKey(Store, on_delete=models.PROTECT, related_name="shelves")
    next_turn = models.DateTimeField(null=True, help_text="Empty when nothing is left there.")
    turned = models.DateTimeField(null=True, help_text="When all of it was last listed and compared.")
    objects_there = models.PositiveBigIntegerField(default=0)
    bytes_there = models.PositiveBigIntegerField(default=0)
    bytes_waiting = models.PositiveBigIntegerField(default=0, help_text="No longer needed; removed a day later.")
    removed = models.DateTimeField(null=True, help_text="When something that had expired was last removed.")
    promised = models.PositiveIntegerField(
        default=0,
        db_default=0,
        help_text="Restore points older than the policy keeps them now: it was longer when they were made.",
    )
    promised_until = models.DateTimeField(null=True, help_text="When the last of them goes.")
    fault = models.TextField(blank=True, help_text="Why the last look failed; nothing was removed then.")
    fault_since = models.DateTimeField(null=True)

    class Meta:
        verbose_name_plural = "shelves"
        constraints = [models.UniqueConstraint(fields=["server", "store"], name="shelf_once")]
        indexes = [
            models.Index(fields=["next_turn"], name="shelf_due"),
            models.Index(fields=["fault_since"], name="shelf_at_fault", condition=Q(fault_since__isnull=False)),
            models.Index(fields=["promised_until"], name="shelf_promised", condition=Q(promised__gt=0)),
        ]

    def __str__(self) -> str:
        return f"{self.server} in {self.store}"


class Alarm(models.Model):
    """Something about a server's backups that somebody has to look at, for as long as it is so."""

    class Cause(models.TextChoices):
        NONE = "none", "No restore point"
        LATE = "late", "No new restore point"
        BEHIND = "behind", "Changes are not stored"
        GAP = "gap", "A gap in the history"
        SILENT = "silent", "The engine is silent"
        FAULT = "fault", "The engine is in trouble"
        COPY = "copy", "The second store is behind"
        DAMAGED = "damaged", "A restore point is damaged"
        PROOF = "proof", "A check failed or did not take place"
        EXPIRY = "expiry", "A store can't be looked through"
        PLAN = "plan", "More is kept than the plan asks for"

    server = models.ForeignKey(Server, on_delete=models.CASCADE, related_name="backup_alarms")
    cause = models.CharField(max_length=8, choices=Cause)
    since = models.DateTimeField(auto_now_add=True, help_text="When it was first seen.")
    text = models.TextField()

    class Meta:
        ordering = ["since"]
        constraints = [models.UniqueConstraint(fields=["server", "cause"], name="alarm_once")]

    def __str__(self) -> str:
        return f"{self.get_cause_display()}: {self.server}"
