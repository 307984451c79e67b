"""The keyring: root keys, key-encryption keys (KEK), data keys (DEK), and the work on them. No key is plain here."""

from __future__ import annotations

import uuid

from django.db import models
from django.utils import timezone

PLATFORM = uuid.UUID(int=0)
"""The owner of what no organisation owns."""


class RootKey(models.Model):
    """A root key in a key source; the key itself lies there. One is active, others can still be read during a move."""

    class State(models.TextChoices):
        ACTIVE = "active", "Active"
        READABLE = "readable", "Only opens"
        RETIRED = "retired", "Retired"

    id = models.CharField(primary_key=True, max_length=80, help_text="`<kind>:<name>`, as the key source calls it.")
    state = models.CharField(max_length=8, choices=State, default=State.ACTIVE)
    created = models.DateTimeField(default=timezone.now, editable=False)
    rotate_after = models.DateTimeField()

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["state"], name="root_active_once", condition=models.Q(state="active"))
        ]

    def __str__(self) -> str:
        return self.id

    @property
    def kind(self) -> str:
        return self.id.partition(":")[0]


class KeyEncryptionKey(models.Model):
    """One version of an owner's key, wrapped by a root key. It wraps the owner's data keys."""

    class State(models.TextChoices):
        ACTIVE = "active", "Active"
        DECRYPT_ONLY = "decrypt-only", "Only opens"
        RETIRED = "retired", "Retired"
        DESTROYED = "destroyed", "Destroyed"

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    owner = models.UUIDField(help_text="The organisation; all zeros is the platform itself.")
    version = models.PositiveIntegerField()
    state = models.CharField(max_length=12, choices=State, default=State.ACTIVE)
    root = models.ForeignKey(RootKey, on_delete=models.PROTECT, related_name="keks")
    wrapped = models.BinaryField(help_text="Empty once it is destroyed.")
    created = models.DateTimeField(default=timezone.now, editable=False)
    rotate_after = models.DateTimeField()
    compromised = models.DateTimeField(null=True, help_text="Since when it is taken to be known to others.")
    destroyed = models.DateTimeField(null=True)

    class Meta:
        ordering = ["owner", "-version"]
        verbose_name = "key-encryption key"
        constraints = [
            models.UniqueConstraint(fields=["owner", "version"], name="kek_version_once"),
            models.UniqueConstraint(fields=["owner"], name="kek_active_once", condition=models.Q(state="active")),
        ]
        indexes = [
            models.Index(fields=["rotate_after"], name="kek_due", condition=models.Q(state="active")),
            models.Index(fields=["owner"], name="kek_rewrap", condition=models.Q(state="decrypt-only")),
        ]

    def __str__(self) -> str:
        return f"version {self.version} of {owner_name(self.owner)}"


class DataKey(models.Model):
    """A data key, wrapped by a KEK. What it encrypts carries its id only."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    kek = models.ForeignKey(KeyEncryptionKey, on_delete=models.PROTECT, related_name="data_keys", db_index=False)
    wrapped = models.BinaryField()
    owner = models.UUIDField()
    purpose = models.CharField(max_length=120)
    server = models.UUIDField(null=True)
    object = models.CharField(max_length=255, blank=True, help_text="Which object it encrypts: a path, a name.")
    shared = models.BooleanField(default=False, help_text="One for all values of a column, not for one object.")
    created = models.DateTimeField(default=timezone.now, editable=False)
    reencrypt = models.DateTimeField(null=True, help_text="Since when what it encrypts needs another key.")

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["owner", "purpose"],
                name="data_key_shared_once",
                condition=models.Q(shared=True, reencrypt__isnull=True),
            )
        ]
        indexes = [
            # In the order in which a rewrap walks, so that rows it moved already are never looked at again.
            models.Index(fields=["kek", "id"], name="data_key_by_kek"),
            models.Index(fields=["owner", "created"], name="data_key_by_owner"),
            models.Index(fields=["created"], name="data_key_reencrypt", condition=models.Q(reencrypt__isnull=False)),
        ]

    def __str__(self) -> str:
        return f"data key {self.id} ({self.purpose})"


class Rewrap(models.Model):
    """One run that moves an owner's data keys to the active KEK: what is shown as progress, and who holds it."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    owner = models.UUIDField()
    total = models.PositiveIntegerField()
    done = models.PositiveIntegerField(default=0)
    lease = models.UUIDField(null=True, help_text="Who works on it now.")
    lease_until = models.DateTimeField(null=True)
    started = models.DateTimeField(default=timezone.now, editable=False)
    finished = models.DateTimeField(null=True)
    error = models.TextField(blank=True)

    class Meta:
        ordering = ["-started"]
        constraints = [
            models.UniqueConstraint(
                fields=["owner"], name="rewrap_open_once", condition=models.Q(finished__isnull=True)
            )
        ]

    def __str__(self) -> str:
        return f"rewrap of {owner_name(self.owner)}: {self.done} of {self.total}"


class Erasure(models.Model):
    """The end of an owner's keys: asked for, destroyed, and complete once no retained copy holds them."""

    owner = models.UUIDField(primary_key=True)
    requested = models.DateTimeField(default=timezone.now, editable=False)
    destroy_after = models.DateTimeField(help_text="When the final backup expires; before, the keys stay.")
    destroyed = models.DateTimeField(null=True)
    complete_after = models.DateTimeField(null=True, help_text="When the last retained copy of the keys expires.")
    completed = models.DateTimeField(null=True)

    def __str__(self) -> str:
        return f"erasure of {owner_name(self.owner)}"


class Generation(models.Model):
    """One row. Whoever ends a key gives it another value, so that no process goes on with keys it has open."""

    id = models.PositiveSmallIntegerField(primary_key=True)
    value = models.UUIDField()


class UnwrapGrant(models.Model):
    """A lease: the agent of `target` may open the data keys of the backups of `source`, until it expires or is revoked.

    `holder` is the operation that restores, `fence` the number it holds its own lease by. A target has one live grant.
    """

    class Purpose(models.TextChoices):
        RESTORE = "restore", "Restore"
        DRILL = "drill", "Drill"

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    organisation = models.UUIDField(help_text="Whose backups, and whose the target is.")
    source = models.UUIDField(help_text="The server whose backups are read.")
    target = models.UUIDField(help_text="The server whose agent reads them.")
    purpose = models.CharField(max_length=8, choices=Purpose)
    holder = models.UUIDField()
    fence = models.PositiveBigIntegerField()
    granted_by = models.CharField(max_length=254)
    reason = models.CharField(max_length=200)
    created = models.DateTimeField(default=timezone.now, editable=False)
    expires_at = models.DateTimeField()
    revoked_at = models.DateTimeField(null=True)
    revoked_because = models.CharField(max_length=200, blank=True)
    opened = models.PositiveIntegerField(default=0, help_text="How many data keys were handed out.")
    last_used = models.DateTimeField(null=True)

    class Meta:
        ordering = ["-created"]
        constraints = [
            # One that has expired stands in nobody's way: whoever opens the next one revokes it.
            models.UniqueConstraint(
                fields=["target"], name="grant_once_a_target", condition=models.Q(revoked_at__isnull=True)
            )
        ]
        indexes = [
            models.Index(fields=["created"], name="grant_by_age"),
            models.Index(fields=["holder", "fence"], name="grant_by_holder"),
        ]

    def __str__(self) -> str:
        return f"{self.purpose} of server {self.source} into {self.target}"

    @property
    def owner(self) -> uuid.UUID:
        return self.organisation


class Allowance(models.Model):
    """How much of something a caller may still ask for: a bucket that fills again with time."""

    name = models.CharField(primary_key=True, max_length=160)
    left = models.FloatField()
    at = models.DateTimeField(help_text="When `left` was right.")


class BundleFile(models.Model):
    """A key bundle at a place: written down before the file is, so that no copy of a key is ever unknown."""

    class Kind(models.TextChoices):
        FULL = "full", "A part of the whole keyring"
        DELTA = "delta", "Some data keys"

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    place = models.CharField(max_length=80)
    name = models.CharField(max_length=120)
    kind = models.CharField(max_length=5, choices=Kind)
    run = models.UUIDField(null=True, help_text="The parts of one whole keyring have one run.")
    part = models.PositiveIntegerField(default=0)
    last = models.BooleanField(default=False, help_text="The run's last part.")
    upto = models.UUIDField(null=True, help_text="The last data key in this part; the next part goes on behind it.")
    roots = models.JSONField(help_text="The root keys without which it can't be read whole.")
    size = models.PositiveBigIntegerField(default=0)
    created = models.DateTimeField(help_text="When the keyring began to be read for it, by the database's clock.")
    verified = models.DateTimeField(null=True, help_text="When it was read back and found right.")
    lost = models.DateTimeField(null=True, help_text="When it was found missing at its place.")
    known = models.DateTimeField(null=True, help_text="Since when this database knows of every erasure that is in it.")

    class Meta:
        constraints = [models.UniqueConstraint(fields=["place", "name"], name="bundle_once_a_place")]
        indexes = [
            models.Index(fields=["place", "kind", "created"], name="bundle_by_place"),
            models.Index(fields=["created"], name="bundle_by_age"),
        ]

    def __str__(self) -> str:
        return f"{self.name} at {self.place}"


def owner_name(owner: uuid.UUID) -> str:
    """Return how an owner is called where no higher layer can be asked for a name."""
    return "the platform" if owner == PLATFORM else f"organisation {owner}"
