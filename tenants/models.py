"""The product's nouns, and what customers want: desired state. What is observed lives in `provisioning`."""

from __future__ import annotations

import uuid

from django.conf import settings
from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models
from django.db.models import Q
from django.db.models.functions import Lower

# No server is sold below this: Synapse with its database needs it to stay usable.
MIN_VCPU, MIN_MEMORY_MB, MIN_DISK_GB, MIN_OBJECT_GB = 2, 4096, 20, 100


WITH_PLAN = ("database_instances", "database_synchronous", "database_replicas", "workers")
"""What a server has from its organisation's plan."""


def _standby(name: str) -> models.CheckConstraint:
    """One to three instances; who waits for a second one, or reads it, has a second one."""
    one = Q(database_instances=1, database_synchronous=False, database_replicas=False)
    return models.CheckConstraint(condition=one | Q(database_instances__in=[2, 3]), name=name)


class Plan(models.Model):
    """What an organisation may use, all its servers together. Money is in minor units of `currency`, each month."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    code = models.SlugField(unique=True)
    name = models.CharField(max_length=60)
    summary = models.CharField(max_length=200, blank=True)
    position = models.PositiveSmallIntegerField(default=0)
    offered = models.BooleanField(default=True, help_text="New organisations can choose it.")
    price_minor = models.PositiveIntegerField(default=0)
    currency = models.CharField(max_length=3, default="EUR")
    servers = models.PositiveSmallIntegerField(validators=[MinValueValidator(1)])
    users = models.PositiveIntegerField(help_text="Monthly active Matrix users, all servers together.")
    vcpu = models.PositiveSmallIntegerField()
    memory_mb = models.PositiveIntegerField()
    disk_gb = models.PositiveIntegerField()
    object_gb = models.PositiveIntegerField()
    # How its servers are kept where the region is a cluster; WITH_PLAN names these.
    database_instances = models.PositiveSmallIntegerField(
        default=1,
        db_default=1,
        validators=[MinValueValidator(1), MaxValueValidator(3)],
        help_text="Copies of each server's database, on machines of their own.",
    )
    database_synchronous = models.BooleanField(
        default=False, db_default=False, help_text="A change counts only when a second instance has it."
    )
    database_replicas = models.BooleanField(
        default=False, db_default=False, help_text="The other instances can be read, for reports."
    )
    workers = models.PositiveSmallIntegerField(
        null=True,
        blank=True,
        validators=[MaxValueValidator(50)],
        help_text="Generic worker processes of a server at most; 0 is none. Empty: as many as its size has room for.",
    )

    class Meta:
        ordering = ["position"]
        constraints = [_standby("plan_standby")]

    def __str__(self) -> str:
        return self.name


class Organisation(models.Model):
    """A customer: people, a plan, and servers."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    name = models.CharField(max_length=80)
    slug = models.SlugField(unique=True, max_length=40)
    created = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["name", "id"]

    def __str__(self) -> str:
        return self.name


class Membership(models.Model):
    """A person in an organisation. Owners run servers; members look."""

    class Role(models.TextChoices):
        OWNER = "owner", "Owner"
        MEMBER = "member", "Member"

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    organisation = models.ForeignKey(Organisation, on_delete=models.CASCADE, related_name="memberships")
    user = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="memberships")
    role = models.CharField(max_length=10, choices=Role)
    created = models.DateTimeField(auto_now_add=True)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["organisation", "user"], name="membership_once")]

    def __str__(self) -> str:
        return f"{self.user} in {self.organisation}"


class Invitation(models.Model):
    """An address that an owner asked to join. It looks the same whether or not somebody has an account with it."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    organisation = models.ForeignKey(Organisation, on_delete=models.CASCADE, related_name="invitations")
    email = models.EmailField(help_text="Lower case.")
    role = models.CharField(max_length=10, choices=Membership.Role)
    created = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["email"]
        constraints = [models.UniqueConstraint(fields=["organisation", "email"], name="invitation_once")]
        indexes = [models.Index(fields=["email"], name="invitation_by_email")]

    def __str__(self) -> str:
        return f"{self.email} to {self.organisation}"


class Subscription(models.Model):
    """The plan that an organisation has taken."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    organisation = models.OneToOneField(Organisation, on_delete=models.CASCADE, related_name="subscription")
    plan = models.ForeignKey(Plan, on_delete=models.PROTECT, related_name="subscriptions")
    since = models.DateTimeField(auto_now_add=True)

    def __str__(self) -> str:
        return f"{self.organisation} on {self.plan}"


class Domain(models.Model):
    """A domain of the customer's own. It reserves nothing until a DNS record has proved it.

    The proof is a TXT record `_hearth-challenge.<name>` with the value `hearth-verify=<token>`.
    """

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    organisation = models.ForeignKey(Organisation, on_delete=models.CASCADE, related_name="domains")
    name = models.CharField(max_length=230, help_text="Lower case; IDN in its ASCII form.")
    token = models.CharField(max_length=64)
    created = models.DateTimeField(auto_now_add=True)
    proved = models.DateTimeField(null=True)
    last_checked = models.DateTimeField(null=True)
    last_error = models.TextField(blank=True)

    class Meta:
        ordering = ["name"]
        constraints = [
            models.UniqueConstraint(fields=["organisation", "name"], name="domain_once_an_organisation"),
            # Many may claim a domain; one has it.
            models.UniqueConstraint(fields=["name"], condition=Q(proved__isnull=False), name="domain_proved_once"),
        ]

    def __str__(self) -> str:
        return self.name


class Server(models.Model):
    """A Matrix homeserver as its organisation wants it. Every change of what is wanted raises `generation` by one."""

    class Desired(models.TextChoices):
        RUNNING = "running", "Running"
        SUSPENDED = "suspended", "Suspended"
        DELETED = "deleted", "Deleted"

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    organisation = models.ForeignKey(Organisation, on_delete=models.PROTECT, related_name="servers")
    name = models.CharField(max_length=63, help_text="The label people know it by; first part of the default name.")
    server_name = models.CharField(max_length=230, help_text="The Matrix server name. It can never change.")
    region = models.SlugField(max_length=40, help_text="Code of the region; regions belong to provisioning.")
    version = models.CharField(max_length=20, help_text="The Synapse version that is wanted.")
    vcpu = models.PositiveSmallIntegerField(default=MIN_VCPU)
    memory_mb = models.PositiveIntegerField(default=MIN_MEMORY_MB)
    disk_gb = models.PositiveIntegerField(default=MIN_DISK_GB)
    object_gb = models.PositiveIntegerField(default=MIN_OBJECT_GB)
    users = models.PositiveIntegerField(help_text="Monthly active users that the server lets in.")
    database_instances = models.PositiveSmallIntegerField(default=1, db_default=1, help_text="As its plan says.")
    database_synchronous = models.BooleanField(default=False, db_default=False)
    database_replicas = models.BooleanField(default=False, db_default=False)
    workers = models.PositiveSmallIntegerField(null=True, blank=True)
    desired = models.CharField(max_length=10, choices=Desired, default=Desired.RUNNING)
    suspend_message = models.CharField(
        max_length=200, blank=True, help_text="What clients are told while suspended; empty when it is not."
    )
    restarts = models.PositiveIntegerField(default=0, help_text="Raised by one to ask for a restart.")
    password_resets = models.PositiveIntegerField(default=0, help_text="Raised by one to ask for a new admin password.")
    generation = models.PositiveIntegerField(default=1)
    created = models.DateTimeField(auto_now_add=True)
    delete_requested = models.DateTimeField(null=True)
    delete_after = models.DateTimeField(null=True, help_text="End of the grace period: nothing is removed before it.")
    deleted = models.DateTimeField(null=True, help_text="Everything of it is gone; the row stays for the trail.")

    class Meta:
        ordering = ["created", "id"]
        constraints = [
            models.UniqueConstraint(Lower("server_name"), condition=Q(deleted__isnull=True), name="server_name_once"),
            models.CheckConstraint(
                condition=Q(
                    vcpu__gte=MIN_VCPU,
                    memory_mb__gte=MIN_MEMORY_MB,
                    disk_gb__gte=MIN_DISK_GB,
                    object_gb__gte=MIN_OBJECT_GB,
                ),
                name="server_minimum_size",
            ),
            _standby("server_standby"),
        ]
        indexes = [
            # The sweep compares generations and looks for ended grace periods: with these it never reads the table.
            models.Index(
                fields=["id"], include=["generation"], name="server_generation", condition=Q(deleted__isnull=True)
            ),
            models.Index(fields=["region"], name="server_by_region", condition=Q(deleted__isnull=True)),
            models.Index(
                fields=["delete_after"], name="server_grace", condition=Q(desired="deleted", deleted__isnull=True)
            ),
        ]

    def __str__(self) -> str:
        return self.server_name
