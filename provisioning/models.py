"""Where servers run, the durable jobs that carry desired state there, and what was observed."""

from __future__ import annotations

import uuid

from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models
from django.db.models import Q
from django.utils import timezone

from security.fields import SealedTextField
from tenants.models import Server


class Region(models.Model):
    """A place where servers can run, and the provider that runs them there."""

    class Provider(models.TextChoices):
        LOCAL = "local", "This machine"
        KUBERNETES = "kubernetes", "Kubernetes"

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    code = models.SlugField(unique=True, max_length=40)
    name = models.CharField(max_length=80)
    provider = models.CharField(max_length=12, choices=Provider)
    base_domain = models.CharField(max_length=200)
    open = models.BooleanField(default=True, help_text="New servers can be placed here.")

    class Meta:
        ordering = ["code"]

    def __str__(self) -> str:
        return self.name


class Cluster(models.Model):
    """The Kubernetes cluster that a region is: how Hearth gets in, and what servers are made of there."""

    region = models.OneToOneField(Region, primary_key=True, on_delete=models.CASCADE, related_name="cluster")
    kubeconfig = SealedTextField(
        row=("region_id",), null=True, help_text="None: the account of the pod that Hearth runs in."
    )
    synapse_image = models.CharField(max_length=400, help_text="With {version} where the release belongs.")
    postgres_image = models.CharField(max_length=400)
    redis_image = models.CharField(max_length=400, blank=True, help_text="Without it servers have no workers.")
    storage_class = models.CharField(
        max_length=200, blank=True, help_text="One that encrypts and lets volumes grow. Empty: the cluster's default."
    )
    snapshot_class = models.CharField(max_length=200, blank=True)
    ingress_class = models.CharField(max_length=200, blank=True)
    gateway = models.CharField(max_length=200, blank=True, help_text="A Gateway, as namespace/name.")
    issuer = models.CharField(
        max_length=200, blank=True, help_text="A ClusterIssuer. Empty: the controller has a certificate already."
    )
    s3_endpoint = models.CharField(max_length=300, blank=True, help_text="Empty: media lies on a volume.")
    s3_bucket = models.CharField(max_length=63, blank=True)
    s3_region = models.CharField(max_length=63, blank=True)
    s3_access_key = models.CharField(max_length=200, blank=True, help_text="Empty: pods get a role.")
    s3_secret_key = SealedTextField(row=("region_id",), null=True)
    route = models.CharField(
        max_length=200, help_text="Where Hearth reaches a server's Synapse, with {namespace}. It needs the admin API."
    )
    database_host = models.CharField(
        max_length=253,
        blank=True,
        default="",
        db_default="",
        help_text="A PostgreSQL 14 or later, in which Hearth makes a database for each server. Empty: each has a "
        "cluster of CloudNativePG.",
    )
    database_port = models.PositiveIntegerField(
        default=5432, db_default=5432, validators=[MinValueValidator(1), MaxValueValidator(65535)]
    )
    database_user = models.CharField(
        max_length=63, blank=True, default="", db_default="", help_text="With CREATEDB and CREATEROLE."
    )
    database_password = SealedTextField(row=("region_id",), null=True)
    database_authority = models.TextField(
        blank=True,
        default="",
        db_default="",
        help_text="Who signed its certificate, as PEM. Empty: a public authority.",
    )
    database_ranges = models.CharField(
        max_length=500,
        blank=True,
        default="",
        db_default="",
        help_text="Where it may lie, as 10.9.0.0/24, split by commas. Servers reach nothing else by its port.",
    )
    network_range = models.CharField(
        max_length=18,
        blank=True,
        default="",
        db_default="",
        help_text="With Kube-OVN: each server gets a network of its own from this range, such as 10.64.0.0/12. It must "
        "be apart from the cluster's own. Empty: servers share the cluster's network.",
    )
    network_prefix = models.PositiveSmallIntegerField(
        default=24,
        db_default=24,
        validators=[MinValueValidator(20), MaxValueValidator(27)],
        help_text="How large each server's network is: 24 has room for 250 pods.",
    )
    prometheus = models.CharField(
        max_length=300,
        blank=True,
        default="",
        db_default="",
        help_text="A Prometheus that reads this cluster's kubelets. Empty: how full volumes are is not known.",
    )
    priority_class = models.CharField(max_length=200, blank=True)
    overlay = models.JSONField(
        default=dict, blank=True, help_text="Laid over each server's spec. null takes a key away; {server} is its id."
    )
    etcd_encrypted = models.BooleanField(
        default=False, help_text="Whoever runs the cluster says that its Secrets are encrypted in etcd."
    )
    ingress_address = models.CharField(
        max_length=253,
        blank=True,
        default="",
        db_default="",
        help_text="Where the ingress controller or gateway answers, as host or host:port. Its lowest TLS version is "
        "probed there. Empty: at the address of one of the region's servers.",
    )
    tls_minimum = models.CharField(
        max_length=3,
        choices=[("1.2", "TLS 1.2"), ("1.3", "TLS 1.3")],
        default="1.2",
        db_default="1.2",
        help_text="What the router must refuse anything below of. It is set in the router itself; Hearth probes it.",
    )
    ingress_namespace = models.CharField(
        max_length=63, blank=True, default="", db_default="", help_text="Where that runs. Empty: ingress."
    )
    monitoring = models.BooleanField(
        default=False, db_default=False, help_text="Each server gets ServiceMonitors and alert rules."
    )
    monitoring_namespace = models.CharField(
        max_length=63, blank=True, default="", db_default="", help_text="Where Prometheus runs. Empty: monitoring."
    )
    hearth_namespace = models.CharField(
        max_length=63, blank=True, default="", db_default="", help_text="Where Hearth's operator runs. Empty: hearth."
    )
    dns_addresses = models.CharField(
        max_length=500,
        blank=True,
        default="",
        db_default="",
        help_text="Of a DNS cache on each node, as 169.254.20.10/32, split by commas.",
    )
    api_server_ranges = models.CharField(
        max_length=500,
        blank=True,
        default="",
        db_default="",
        help_text="Where the API server lies, as 10.0.0.1/32, split by commas. Empty: databases may reach any address "
        "on its ports.",
    )
    backup_image = models.CharField(
        max_length=400,
        blank=True,
        default="",
        db_default="",
        help_text="The backup engine's image. Empty: servers here are not backed up.",
    )
    backup_issuer = models.CharField(
        max_length=200,
        blank=True,
        default="",
        db_default="",
        help_text="A ClusterIssuer whose certificates Hearth's internal listener trusts, for the backup engines.",
    )
    internal_address = models.CharField(
        max_length=300,
        blank=True,
        default="",
        db_default="",
        help_text="Where pods reach Hearth's internal listener, as https://host:port. Empty: as Hearth's settings say.",
    )
    cluster_uid = models.CharField(
        max_length=64,
        default="",
        db_default="",
        editable=False,
        help_text="The uid of the cluster's namespace kube-system: another cluster is refused while servers are here.",
    )
    revision = models.PositiveIntegerField(default=0, help_text="Rises with each change, so that workers notice it.")
    findings = models.JSONField(default=list, help_text="What the last check of the region found.")
    checked = models.DateTimeField(null=True)

    class Meta:
        verbose_name = "Kubernetes region"

    def __str__(self) -> str:
        return str(self.region)


class Network(models.Model):
    """The range of addresses that one server has for its own network, as the number of a piece of its region's range.

    Pieces are of one size while a region has servers, so two that have different numbers never overlap.
    """

    server = models.OneToOneField(Server, primary_key=True, on_delete=models.CASCADE, related_name="network")
    region = models.ForeignKey(Region, on_delete=models.PROTECT, related_name="networks")
    number = models.PositiveIntegerField()
    cidr = models.CharField(max_length=18)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["region", "number"], name="network_number_once"),
            models.UniqueConstraint(fields=["region", "cidr"], name="network_range_once"),
        ]

    def __str__(self) -> str:
        return self.cidr


class Operation(models.Model):
    """One durable job on one server, carried out in short steps by whoever holds its lease.

    `fence` rises with every lease taken. Each write of a worker names the fence it holds, so a worker that lost its
    lease can change nothing any more.
    """

    class Kind(models.TextChoices):
        CREATE = "create", "Create"
        CONFIGURE = "configure", "Apply changes"
        RESTART = "restart", "Restart"
        SUSPEND = "suspend", "Suspend"
        RESUME = "resume", "Resume"
        UPGRADE = "upgrade", "Upgrade"
        PASSWORD = "password", "New admin password"
        DELETE = "delete", "Delete"
        RESTORE = "restore", "Restore"
        COPY = "copy", "Look into a backup"
        SWITCH = "switch", "Switch to the copy"
        GO_BACK = "go-back", "Go back to before the restore"
        DROP = "drop", "Remove a copy"
        EXPORT = "export", "Export"

    class State(models.TextChoices):
        QUEUED = "queued", "Waiting"
        RUNNING = "running", "In progress"
        SUCCEEDED = "succeeded", "Done"
        FAILED = "failed", "Failed"
        CANCELLED = "cancelled", "Cancelled"

    OPEN = (State.QUEUED, State.RUNNING)

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    server = models.ForeignKey(Server, on_delete=models.PROTECT, related_name="operations")
    kind = models.CharField(max_length=12, choices=Kind)
    generation = models.PositiveIntegerField(help_text="The server's generation that this operation brings about.")
    wanted = models.JSONField(
        default=dict, help_text="What was wanted at that generation; later changes come after it."
    )
    state = models.CharField(max_length=10, choices=State, default=State.QUEUED)
    attempts = models.PositiveSmallIntegerField(default=0, help_text="Tries of the current step.")
    run_after = models.DateTimeField(help_text="Not taken before this moment: back-off between tries.")
    lease_owner = models.CharField(max_length=100, blank=True)
    lease_until = models.DateTimeField(null=True)
    fence = models.PositiveBigIntegerField(default=0)
    note = models.CharField(
        max_length=200, blank=True, default="", db_default="", help_text="How far a long step is, for the page."
    )
    cancel_requested = models.BooleanField(default=False)
    error_code = models.CharField(max_length=40, blank=True)
    error = models.TextField(blank=True, help_text="What happened and what to do next, for a person.")
    created = models.DateTimeField(auto_now_add=True)
    started = models.DateTimeField(null=True)
    finished = models.DateTimeField(null=True)

    class Meta:
        ordering = ["-created"]
        constraints = [
            models.UniqueConstraint(
                fields=["server"], condition=Q(state__in=["queued", "running"]), name="operation_one_open_a_server"
            )
        ]
        indexes = [
            models.Index(fields=["run_after"], name="operation_due", condition=Q(state__in=["queued", "running"])),
            models.Index(fields=["server", "-created"], name="operation_by_server"),
            models.Index(fields=["finished"], name="operation_ended", condition=Q(finished__isnull=False)),
            models.Index(fields=["server", "generation", "state"], name="operation_by_generation"),
        ]

    def __str__(self) -> str:
        return f"{self.get_kind_display()} {self.server}"

    @property
    def shown_state(self) -> str:
        """Its state for people: between two looks at something that takes long it goes on, though nobody holds it."""
        waits = self.state == self.State.QUEUED and self.started is not None
        return self.State.RUNNING.label if waits else self.get_state_display()


class OperationStep(models.Model):
    """A named step of an operation, in order."""

    class State(models.TextChoices):
        WAITING = "waiting", "Waiting"
        RUNNING = "running", "In progress"
        DONE = "done", "Done"
        FAILED = "failed", "Failed"
        SKIPPED = "skipped", "Skipped"

    operation = models.ForeignKey(Operation, on_delete=models.CASCADE, related_name="steps")
    position = models.PositiveSmallIntegerField()
    name = models.CharField(max_length=40)
    title = models.CharField(max_length=120)
    state = models.CharField(max_length=8, choices=State, default=State.WAITING)
    attempts = models.PositiveSmallIntegerField(default=0)
    started = models.DateTimeField(null=True)
    finished = models.DateTimeField(null=True)

    class Meta:
        ordering = ["position"]
        constraints = [models.UniqueConstraint(fields=["operation", "position"], name="step_position_once")]

    @property
    def seconds(self) -> float | None:
        """How long its last try took, or takes so far; None before its first."""
        if self.started is None or self.state in (self.State.WAITING, self.State.SKIPPED):
            return None
        return max(0.0, ((self.finished or timezone.now()) - self.started).total_seconds())


class OperationEvent(models.Model):
    """One line of an operation's live log."""

    class Level(models.TextChoices):
        INFO = "info", "Info"
        WARNING = "warning", "Warning"
        ERROR = "error", "Error"

    id = models.BigAutoField(primary_key=True)
    operation = models.ForeignKey(Operation, on_delete=models.CASCADE, related_name="events")
    at = models.DateTimeField(auto_now_add=True)
    step = models.CharField(max_length=40, blank=True)
    level = models.CharField(max_length=8, choices=Level, default=Level.INFO)
    message = models.TextField()

    class Meta:
        ordering = ["id"]
        indexes = [models.Index(fields=["operation", "id"], name="event_by_operation")]


class ServerStatus(models.Model):
    """A server as it was last seen. Only the observer and the engine write it."""

    class Phase(models.TextChoices):
        PENDING = "pending", "Waiting"
        PROGRESSING = "progressing", "In progress"
        READY = "ready", "Ready"
        DEGRADED = "degraded", "Degraded"
        SUSPENDED = "suspended", "Suspended"
        FAILED = "failed", "Failed"
        DELETED = "deleted", "Deleted"

    server = models.OneToOneField(Server, primary_key=True, on_delete=models.CASCADE, related_name="status")
    observed_generation = models.PositiveIntegerField(default=0)
    applied = models.JSONField(default=dict, help_text="The parts of the spec that were carried out last.")
    phase = models.CharField(max_length=12, choices=Phase, default=Phase.PENDING)
    reason = models.CharField(max_length=40, blank=True, help_text="One named reason, such as `SynapseCrashed`.")
    message = models.TextField(blank=True, help_text="The reason in a sentence for a person.")
    homeserver_url = models.CharField(max_length=255, blank=True)
    version = models.CharField(max_length=20, blank=True, help_text="The Synapse version that runs.")
    signing_key_id = models.CharField(max_length=60, blank=True)
    isolation = models.TextField(blank=True, help_text="Empty when neighbours are isolated, else why not.")
    crashes = models.PositiveIntegerField(default=0, help_text="Ends of a process that nobody asked for.")
    process_started = models.DateTimeField(null=True)
    ready_since = models.DateTimeField(null=True)
    last_seen = models.DateTimeField(null=True)
    last_crash = models.DateTimeField(null=True)
    users = models.PositiveIntegerField(null=True, help_text="Monthly active users, as Synapse counted them last.")
    media_bytes = models.PositiveBigIntegerField(
        null=True, help_text="What people uploaded, as Synapse counted it last; None where the provider measures it."
    )
    checked = models.DateTimeField(null=True, help_text="When the protocol checks were last begun.")
    check_reason = models.CharField(max_length=40, blank=True, help_text="Empty when the last checks passed.")
    check_message = models.TextField(blank=True)
    next_check = models.DateTimeField(null=True)
    revision = models.PositiveBigIntegerField(
        default=0, help_text="Rises with each write; a write from older news is dropped."
    )

    class Meta:
        verbose_name_plural = "server statuses"
        # The sweep compares generations; with this it never reads the table itself.
        indexes = [models.Index(fields=["server"], include=["observed_generation"], name="status_generation")]

    def __str__(self) -> str:
        return f"{self.server}: {self.get_phase_display()}"


class ServerSecret(models.Model):
    """A secret of one server: the only copy outside the server's own configuration."""

    server = models.ForeignKey(Server, on_delete=models.CASCADE, related_name="secrets")
    name = models.CharField(max_length=40)
    # Bound to what it is for, and not to a number that is known only after the row is there.
    value = SealedTextField(row=("server_id", "name"), owner="server.organisation_id")
    created = models.DateTimeField(auto_now_add=True)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["server", "name"], name="secret_name_once")]

    def __str__(self) -> str:
        return f"{self.name} of {self.server}"


class Sample(models.Model):
    """What a server used at one moment. Bytes, and CPU seconds since its processes started. None: not measured."""

    id = models.BigAutoField(primary_key=True)
    server = models.ForeignKey(Server, on_delete=models.CASCADE, related_name="samples")
    at = models.DateTimeField()
    memory_bytes = models.PositiveBigIntegerField(null=True)
    cpu_seconds = models.FloatField(null=True)
    disk_bytes = models.PositiveBigIntegerField(null=True)
    media_bytes = models.PositiveBigIntegerField(null=True)
    users = models.PositiveIntegerField(null=True, help_text="Monthly active users, as Synapse counts them.")

    class Meta:
        ordering = ["-at"]
        indexes = [models.Index(fields=["server", "-at"], name="sample_by_server")]

    def __str__(self) -> str:
        return f"{self.server}, {self.at:%Y-%m-%d %H:%M}"


class Heartbeat(models.Model):
    """A part of Hearth that says it is alive: beat, and each worker."""

    name = models.CharField(primary_key=True, max_length=100)
    at = models.DateTimeField()
