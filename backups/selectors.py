"""Reads for pages. Each is a fixed number of queries, however many rows there are."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from django.core.paginator import Page, Paginator
from django.db.models import QuerySet
from django.utils import timezone

from backups.copying.selectors import Second, second_of
from backups.models import Line, Order, Policy, Proof, RestorePoint, ServerBackups, Shelf
from backups.policies import policy_of
from tenants.models import Server

PAGE = 20
SILENT = timedelta(minutes=5)
"""After this long without a report nobody knows how the backups are."""
PROMISED_RPO = timedelta(minutes=15)
SLACK = timedelta(hours=2)
"""How much later than scheduled a base backup may be whole before it is called late."""
OPEN = (Order.State.WAITING, Order.State.TAKEN)


@dataclass(frozen=True)
class Window:
    """Any second between the two can be restored."""

    begun: datetime
    until: datetime


@dataclass(frozen=True)
class State:
    """How the backups of a server are, in a word and a sentence."""

    label: str
    tone: str
    text: str


@dataclass(frozen=True)
class Card:
    """Everything that the page of one server's backups shows."""

    server: Server
    row: ServerBackups | None
    state: State
    policy: Policy
    points: Page[RestorePoint]
    newest: RestorePoint | None
    windows: list[Window]
    order: Order | None
    failed: Order | None
    proof: Proof | None
    """The last recovery test, however it ended."""
    proved: Proof | None
    """The last one that passed."""
    second: Second | None
    promised: Shelf | None
    """Where restore points are kept that the plan would not keep any more."""
    now: datetime

    @property
    def at_risk(self) -> timedelta | None:
        """How much of the newest work a loss at this moment would cost (the RPO now); None before the first line."""
        return max(self.now - self.row.until, timedelta(0)) if self.row and self.row.until else None

    @property
    def can_order(self) -> bool:
        """Whether a restore point can be asked for."""
        return self.row is not None and self.order is None and self.server.desired != Server.Desired.DELETED


def card(server: Server, page: str | None = None) -> Card:
    """Read the state of a server's backups."""
    now = timezone.now()
    row = ServerBackups.objects.filter(server=server).first()
    points = Paginator(whole(server), PAGE).get_page(page)
    newest = whole(server).first()
    orders = Order.objects.filter(server=server)
    latest = orders.filter(kind="backup").first()
    policy = policy_of(server)
    tests = Proof.objects.filter(server=server, kind=Proof.Kind.RECOVERY)
    return Card(
        server=server,
        row=row,
        state=state_of(row, newest, policy, now),
        policy=policy,
        points=points,
        newest=newest,
        windows=windows(server, policy, now),
        order=orders.filter(state__in=OPEN).first(),
        failed=latest if latest is not None and latest.state == Order.State.FAILED else None,
        proof=tests.exclude(result="").first(),
        proved=tests.filter(result=Proof.Result.PASSED).first(),
        second=second_of(server),
        promised=Shelf.objects.filter(server=server, promised__gt=0, promised_until__gt=now).first(),
        now=now,
    )


def whole(server: Server) -> QuerySet[RestorePoint]:
    """Return the restore points that pages offer, newest first."""
    return RestorePoint.objects.filter(server=server).exclude(state=RestorePoint.State.GONE)


def windows(server: Server, policy: Policy, now: datetime) -> list[Window]:
    """Return the stretches in which any second can be restored, newest first."""
    oldest = now - timedelta(days=policy.window_days)
    rows = Line.objects.filter(server=server, begun__isnull=False, until__gt=oldest)
    found = [Window(max(row.begun, oldest), row.until) for row in rows[:PAGE] if row.begun and row.until]
    return [each for each in found if each.begun <= each.until]  # of a line that has just begun nothing can be chosen


def state_of(row: ServerBackups | None, newest: RestorePoint | None, policy: Policy, now: datetime) -> State:
    """Return how backups are: a function of what was reported alone. The worst that is true is said."""
    if row is None or row.reported is None:
        text = "The first backup begins when the server is up; of an older one, when it is next changed."
        return State("Being set up", "busy", text)
    if now - row.reported > SILENT:
        text = "The backup engine has not reported for a while. What was stored before is safe."
        return State("Not heard from", "bad", text)
    if row.fault_code:
        return State("In trouble", "bad", row.fault)
    if newest is None:
        return State("First backup", "busy", "The first restore point is being taken.")
    return _behind(row, newest, policy, now) or State("Protected", "good", "Changes reach the store within a minute.")


def _behind(row: ServerBackups, newest: RestorePoint, policy: Policy, now: datetime) -> State | None:
    if newest.state == RestorePoint.State.DAMAGED:
        return State("Damaged", "bad", f"The newest restore point is damaged: {newest.damage}")
    if now - newest.at > timedelta(hours=policy.every_hours) + SLACK:
        return State("Late", "warn", "The last restore point is older than planned. Changes since then are kept too.")
    if row.until is None or now - row.until > PROMISED_RPO:
        return State("Behind", "warn", "The newest changes have not reached the store for a while.")
    return None
