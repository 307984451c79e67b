"""Reads for pages. Each is a fixed number of queries, however many rows there are."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

from django.core.paginator import Page, Paginator
from django.db.models import QuerySet
from django.utils import timezone

from provisioning import secrets
from provisioning.models import Operation, OperationEvent, OperationStep, Region, Sample, ServerSecret, ServerStatus
from provisioning.services import cancellable
from provisioning.status import QUEUED
from provisioning.status_writer import deciding_operation
from tenants import limits
from tenants.models import Organisation, Server

Phase, State = ServerStatus.Phase, Operation.State
PAGE, HISTORY, LINES, LOG_LINES = 20, 10, 200, 5000
WATCH_S = 5
TONES: dict[str, str] = {
    Phase.PENDING: "busy",
    Phase.PROGRESSING: "busy",
    Phase.READY: "good",
    Phase.DEGRADED: "warn",
    Phase.SUSPENDED: "idle",
    Phase.FAILED: "bad",
    Phase.DELETED: "idle",
}
# While something is going on, its name says more than "in progress".
LABELS = {
    "Creating": "Being made",
    "Configuring": "Being changed",
    "Restarting": "Restarting",
    "Suspending": "Being suspended",
    "Resuming": "Being opened",
    "Upgrading": "Upgrading",
    "Restoring": "Being restored",
    "Deleting": "Being deleted",
    "Checking": "Being checked",
    "DeletionScheduled": "To be deleted",
    "Cancelled": "Cancelled",
}
ADVICE = {
    "ProviderUnreachable": "There is nothing to do: Hearth keeps asking. If Hearth is yours, see that it still runs.",
    "SigningKeyMismatch": "Change nothing and ask support: the right key can be put back.",
    "ServerMissing": "Change nothing and ask support.",
    "SynapseCrashed": "There is nothing to do at first: it comes back by itself. If it keeps ending, ask support.",
    "NotAnswering": "There is nothing to do at first: it is started again by itself. If it lasts, ask support.",
    "DatabaseDown": "There is nothing to do at first: it comes back by itself. If it lasts for minutes, ask support.",
    "PortTaken": "End the other program, or ask support. The server starts by itself when the port is free.",
    "DiskFull": "Make room on the machine, or ask support; then try again.",
    "InternalError": "Try again. If it fails again, tell support the number above.",
    "Cancelled": "Try again, or delete the server: then nothing of it is left.",
    "RegionCredentials": "Ask support: staff must renew Hearth's access to this region.",
    "RegionForbidden": "Ask support: staff must give Hearth the rights that it lacks in this region.",
    "RegionKindMissing": "Ask support: something is not installed in this region.",
    "QuotaExceeded": "Ask support: the region must be given more room.",
    "NetworksUsedUp": "Ask support, or choose another region.",
    "DatabaseCredentials": "Ask support: staff must renew Hearth's password for this region's database.",
    "DatabaseUntrusted": "Ask support: staff must look at this region's database.",
    "DatabaseForbidden": "Ask support: staff must look at this region's database.",
    "DatabaseTaken": "Change nothing and ask support.",
    "DatabaseUnreachable": "There is nothing to do: try again in some minutes.",
    "RegionUnreachable": "There is nothing to do: try again in some minutes.",
    "NamespaceTaken": "Change nothing and ask support.",
    "RemovalStuck": "Try again later. If it stays so, ask support.",
}
OPERATION_TONES: dict[str, str] = {
    State.QUEUED: "busy",
    State.RUNNING: "busy",
    State.SUCCEEDED: "good",
    State.FAILED: "bad",
    State.CANCELLED: "idle",
}


@dataclass(frozen=True)
class Badge:
    """A server's status in one or two words."""

    label: str
    tone: str


@dataclass(frozen=True)
class Row:
    """A server in a list."""

    server: Server
    badge: Badge
    busy: bool
    region: str


@dataclass(frozen=True)
class Progress:
    """An operation that is open, or that failed or was cancelled and still stands."""

    operation: Operation
    steps: list[OperationStep]
    events: list[OperationEvent]
    tone: str
    can_cancel: bool
    can_retry: bool
    waits: bool


@dataclass(frozen=True)
class ServerPage:
    """Everything that the page of one server shows."""

    server: Server
    status: ServerStatus
    badge: Badge
    busy: bool
    advice: str
    region: Region | None
    sample: Sample | None
    password_waits: bool
    progress: Progress | None = None
    history: list[Operation] = field(default_factory=list)

    @property
    def poll(self) -> int:
        """Seconds after which an open page asks again; 0 when nothing will change by itself."""
        if self.busy:
            return 1
        return WATCH_S if self.status.phase == Phase.DEGRADED else 0

    @property
    def loopback(self) -> bool:
        """Whether only programs on this machine can reach the server."""
        return urlsplit(self.status.homeserver_url).hostname in ("localhost", "127.0.0.1", "::1")

    @property
    def connectable(self) -> bool:
        """Whether there is something to connect to."""
        made = self.status.applied.get("mode") == "running" and bool(self.status.homeserver_url)
        return made and self.server.desired == Server.Desired.RUNNING

    @property
    def recent_crash(self) -> bool:
        """Whether a process of it ended by itself within a day."""
        crash = self.status.last_crash
        return crash is not None and timezone.now() - crash < timedelta(days=1)


def badge(status: ServerStatus) -> Badge:
    """Return the words and the tone for a status."""
    return Badge(LABELS.get(status.reason) or Phase(status.phase).label, TONES[status.phase])


def status_of(server: Server) -> ServerStatus:
    """Return the server's status; one that nobody looked at yet is waiting."""
    try:
        return server.status
    except ServerStatus.DoesNotExist:
        phase, reason, message = QUEUED
        return ServerStatus(server=server, phase=phase, reason=reason, message=message)


def is_busy(status: ServerStatus) -> bool:
    """Tell whether the status will change by itself soon, so that a page should keep looking."""
    return status.phase in (Phase.PENDING, Phase.PROGRESSING)


def servers(organisation: Organisation) -> QuerySet[Server]:
    """Return the organisation's servers that are not gone, with their status."""
    alive = Server.objects.filter(organisation=organisation, deleted__isnull=True)
    return alive.select_related("status").order_by("created", "id")


def server_rows(organisation: Organisation, page: str | None) -> tuple[Page[Server], list[Row]]:
    """Return one page of the organisation's servers."""
    found = Paginator(servers(organisation), PAGE).get_page(page)
    regions = dict(Region.objects.values_list("code", "name"))
    rows = []
    for server in found:
        status = status_of(server)
        region = regions.get(server.region, server.region)
        rows.append(Row(server=server, badge=badge(status), busy=is_busy(status), region=region))
    return found, rows


def plan_use(organisation: Organisation) -> list[limits.Limit]:
    """Return what the servers take of the plan."""
    return limits.lines(organisation.subscription.plan, limits.in_use(organisation))


def server_page(server: Server) -> ServerPage:
    """Read everything that the page of `server` shows."""
    status = status_of(server)
    progress = _progress(server)
    return ServerPage(
        server=server,
        status=status,
        badge=badge(status),
        busy=is_busy(status) or (progress is not None and progress.waits),
        advice=ADVICE.get(status.reason, ""),
        region=Region.objects.filter(code=server.region).first(),
        sample=Sample.objects.filter(server=server).first(),
        password_waits=ServerSecret.objects.filter(server=server, name=secrets.ADMIN_PASSWORD).exists(),
        progress=progress,
        history=list(Operation.objects.filter(server=server)[:HISTORY]),
    )


def _progress(server: Server) -> Progress | None:
    operation = deciding_operation(server)
    if operation is None:
        return None
    waits = operation.state in Operation.OPEN
    newest = list(OperationEvent.objects.filter(operation=operation).order_by("-id")[:LINES])
    return Progress(
        operation=operation,
        steps=list(operation.steps.all()),
        events=newest[::-1],
        tone=OPERATION_TONES[operation.state],
        can_cancel=waits and not operation.cancel_requested and cancellable(operation),
        can_retry=not waits,
        waits=waits,
    )


def operation_log(operation: Operation) -> dict[str, Any]:
    """Return the steps and the whole log of one operation."""
    events = OperationEvent.objects.filter(operation=operation).order_by("id")[:LOG_LINES]
    return {"steps": list(operation.steps.all()), "events": list(events), "tone": OPERATION_TONES[operation.state]}
