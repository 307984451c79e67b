"""What is wrong with backups, by an observer that reads rows and clocks and believes no engine's word that all is well.

`observe` writes an alarm for each server and cause, keeps it while it is so, and takes it away after. Staff get one
mail a day for each cause, owners one for what concerns what they could bring back.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from allauth.account.models import EmailAddress
from django.db import connection, transaction
from django.db.models import DateTimeField, Exists, ExpressionWrapper, F, IntegerField, OuterRef, QuerySet, Subquery
from django.db.models.functions import Coalesce
from django.urls import reverse
from django.utils import timezone

from accounts.alerts import mail_staff
from accounts.models import User
from backups.models import Alarm, Copy, Line, Policy, Proof, RegionStores, RestorePoint, ServerBackups, Shelf
from backups.proofs.models import READ_FIRST
from backups.restoring import reads
from backups.selectors import PROMISED_RPO, SLACK
from notifications.links import public_url
from notifications.models import Mail
from notifications.services import queue_mail
from security.errors import SecurityError
from security.keyring.publish import database_time
from tenants.models import Membership, Organisation, Server

log = logging.getLogger(__name__)
Cause = Alarm.Cause
SILENT = timedelta(minutes=15)
FIRST = timedelta(hours=2)
"""A new server has a restore point by then."""
COPY_LAG = timedelta(hours=1)
TROUBLE = timedelta(minutes=5)
"""A fault that goes by itself is nobody's business."""
RECENT = timedelta(days=1)
"""So long a gap or a check that failed is told."""
PROOF_LATE, READING_LATE = timedelta(days=1), timedelta(days=3)
SHOWN_FOR = timedelta(days=40)
"""Longer than between two recovery tests by any policy."""
AGAIN_AFTER = timedelta(days=1)
SHOWN = 20
OWNERS = (Cause.NONE, Cause.LATE, Cause.BEHIND, Cause.GAP, Cause.DAMAGED)
"""What an organisation's owners are told of: it changes what they could bring back."""
_LOCK = 0x6261636B  # "back"


@dataclass(frozen=True)
class Found:
    """One thing that is wrong."""

    server: uuid.UUID
    text: str


def observe() -> int:
    """Find what is wrong, write it down, tell who has to know; return how many alarms there are. One at a time."""
    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute("select pg_try_advisory_xact_lock(%s)", [_LOCK])
            if not cursor.fetchone()[0]:
                return Alarm.objects.count()
        at = database_time()
        for cause, find in _FINDERS.items():
            _write(cause, find(at))
    for cause in _FINDERS:
        _tell(cause)
    return Alarm.objects.count()


def _write(cause: Cause, found: Iterable[Found]) -> None:
    now = {each.server: each.text for each in found}
    before = {each.server_id: each for each in Alarm.objects.filter(cause=cause)}
    Alarm.objects.filter(cause=cause).exclude(server__in=now).delete()
    Alarm.objects.bulk_create(
        [Alarm(server_id=pk, cause=cause, text=text) for pk, text in now.items() if pk not in before]
    )
    changed = [before[pk] for pk, text in now.items() if pk in before and before[pk].text != text]
    for row in changed:
        row.text = now[row.server_id]
    Alarm.objects.bulk_update(changed, ["text"], batch_size=500)


# What is looked for. Each is one query.


def _served() -> QuerySet[Server]:
    """Return the servers that must have backups: those that run where there is a store."""
    regions = RegionStores.objects.values("region__code")
    return Server.objects.filter(deleted__isnull=True, desired=Server.Desired.RUNNING, region__in=regions)


def _every() -> Coalesce:
    """Return the hours between base backups, as `policies.policy_of` finds them."""
    plan = Policy.objects.filter(plan__subscriptions__organisation=OuterRef("organisation_id"))
    own, rest = Policy.objects.filter(server=OuterRef("pk")), Policy.objects.filter(plan=None, server=None)
    choices = [Subquery(each.values("every_hours")[:1], output_field=IntegerField()) for each in (own, plan, rest)]
    return Coalesce(*choices, 24)


def _none(at: datetime) -> list[Found]:
    points = RestorePoint.objects.filter(server=OuterRef("pk"), state=RestorePoint.State.WHOLE)
    rows = _served().filter(~Exists(points), created__lt=at - FIRST)
    return [Found(pk, "There is no whole restore point of this server.") for pk in rows.values_list("pk", flat=True)]


def _late(at: datetime) -> list[Found]:
    points = RestorePoint.objects.filter(server=OuterRef("pk"), state=RestorePoint.State.WHOLE).order_by("-at")
    newest = Subquery(points.values("at")[:1])
    # What is younger than a schedule's shortest interval is never late, so most rows need no look at their policy.
    rows = _served().annotate(newest=newest, every=_every()).filter(newest__lt=at - timedelta(hours=1) - SLACK)
    return [
        Found(pk, f"The newest whole restore point is of {_told(newest)}; one was due every {every} hours.")
        for pk, newest, every in rows.values_list("pk", "newest", "every")
        if at - newest > timedelta(hours=every) + SLACK
    ]


def _behind(at: datetime) -> list[Found]:
    rows = ServerBackups.objects.filter(server__in=_served(), until__lt=at - PROMISED_RPO)
    return [
        Found(pk, f"What changed after {_told(until)} is not stored.") for pk, until in rows.values_list("pk", "until")
    ]


def _gap(at: datetime) -> list[Found]:
    rows = Line.objects.filter(server__in=_served(), until__gt=at - RECENT).exclude(ended="").order_by("until")
    rows = rows.exclude(reads.ended_by_restore())
    return [
        Found(pk, f"The history ended at {_told(until)} ({why}), and another began. Seconds between can't be restored.")
        for pk, until, why in rows.values_list("server", "until", "ended")
    ]


def _silent(at: datetime) -> list[Found]:
    rows = ServerBackups.objects.filter(server__in=_served(), reported__lt=at - SILENT)
    found = [
        Found(pk, f"The engine was last heard of at {_told(heard)}.")
        for pk, heard in rows.values_list("pk", "reported")
    ]
    never = _served().filter(created__lt=at - FIRST).exclude(backups__reported__isnull=False)
    return found + [Found(pk, "The engine has never reported.") for pk in never.values_list("pk", flat=True)]


def _fault(at: datetime) -> list[Found]:
    rows = ServerBackups.objects.filter(server__in=_served(), fault_since__lt=at - TROUBLE).exclude(fault_code="")
    return [
        Found(pk, f"Since {_told(since)}: {text} ({code})")
        for pk, since, text, code in rows.values_list("pk", "fault_since", "fault", "fault_code")
    ]


def _copy(at: datetime) -> list[Found]:
    regions = RegionStores.objects.filter(second__isnull=False).values("region__code")
    rows = ServerBackups.objects.filter(server__in=_served(), server__region__in=regions, until__isnull=False)
    oldest = Coalesce("copied_until", F("begun"), output_field=DateTimeField())
    lag = ExpressionWrapper(F("until") - COPY_LAG, output_field=DateTimeField())
    late = rows.annotate(oldest=oldest).filter(oldest__lt=lag, begun__lt=at - COPY_LAG)
    faults = dict(Copy.objects.filter(fault_since__lt=at - TROUBLE).values_list("server", "fault"))
    found = [
        Found(
            pk,
            (f"The second store has everything up to {_told(until)}." if until else "The second store lacks backups.")
            + (f" {faults.pop(pk)}" if pk in faults else ""),
        )
        for pk, until in late.values_list("pk", "copied_until")
    ]
    return found + [Found(pk, text) for pk, text in faults.items()]


def _plan(at: datetime) -> list[Found]:
    rows = Shelf.objects.filter(promised__gt=0, promised_until__gt=at, server__in=_served())
    return [
        Found(
            pk,
            f"Restore points that are older than the plan keeps them now: {count}. They were promised until "
            f"{_told(until)} at the latest, and nothing is removed before.",
        )
        for pk, count, until in rows.values_list("server", "promised", "promised_until")
    ]


def _damaged(at: datetime) -> list[Found]:  # noqa: ARG001 (one signature for all)
    rows = RestorePoint.objects.filter(state=RestorePoint.State.DAMAGED, server__deleted__isnull=True).order_by("at")
    found: dict[uuid.UUID, list[str]] = {}
    for pk, when, text in rows.values_list("server", "at", "damage"):
        found.setdefault(pk, []).append(f"{_told(when)}: {text}")
    return [
        Found(pk, f"Damaged restore points: {len(texts)}. The newest is of {texts[-1]}") for pk, texts in found.items()
    ]


def _proof(at: datetime) -> list[Found]:
    kinds = dict(Proof.Kind.choices)
    bad = (Proof.Result.FAILED, Proof.Result.MISSED)
    ended = Proof.objects.filter(begun__gt=at - SHOWN_FOR, server__deleted__isnull=True).exclude(result="")
    # A test comes every few days: what the last of its kind found stays true until another one passes.
    same = {"server": OuterRef("server"), "kind": OuterRef("kind")}
    later = Proof.objects.filter(**same, begun__gt=OuterRef("begun")).exclude(result="")
    rows = ended.filter(~Exists(later), result__in=bad).order_by("begun")
    late = ServerBackups.objects.filter(server__in=_served(), next_proof__lt=at - PROOF_LATE)
    missed = [
        Found(pk, f"A recovery test was due at {_told(due)}.") for pk, due in late.values_list("pk", "next_proof")
    ]
    late = ServerBackups.objects.filter(
        server__in=_served(), next_reading__gt=READ_FIRST, next_reading__lt=at - READING_LATE
    )
    missed += [Found(pk, f"A full read was due at {_told(due)}.") for pk, due in late.values_list("pk", "next_reading")]
    failed = [
        Found(pk, f"“{kinds[kind]}” of {_told(begun)} did not pass. {summary}")
        for pk, kind, begun, summary in rows.values_list("server", "kind", "begun", "summary")
    ]
    return missed + failed


def _expiry(at: datetime) -> list[Found]:
    stopped = Shelf.objects.filter(fault_since__lt=at - TROUBLE).select_related("store")
    found = [Found(each.server_id, f"{each.store}: {each.fault}") for each in stopped]
    late = Shelf.objects.filter(next_turn__lt=at - RECENT).select_related("store")
    return found + [Found(each.server_id, f"{each.store} was to be looked through a day ago.") for each in late]


_FINDERS: dict[Cause, Callable[[datetime], list[Found]]] = {
    Cause.NONE: _none,
    Cause.LATE: _late,
    Cause.BEHIND: _behind,
    Cause.GAP: _gap,
    Cause.SILENT: _silent,
    Cause.FAULT: _fault,
    Cause.COPY: _copy,
    Cause.PLAN: _plan,
    Cause.DAMAGED: _damaged,
    Cause.PROOF: _proof,
    Cause.EXPIRY: _expiry,
}


# Mails


def _tell(cause: Cause) -> None:
    alarms = Alarm.objects.filter(cause=cause)
    if not alarms.exists():
        return
    page = f"{public_url(reverse('admin:backups_alarm_changelist'))}?cause__exact={cause.value}"
    try:
        mail_staff(f"Hearth: backups: {cause.label}", _text(alarms, page))
        if cause in OWNERS:
            for organisation in Organisation.objects.filter(servers__backup_alarms__cause=cause).distinct():
                _mail_owners(organisation, cause)
    except SecurityError as error:
        # A mail is sealed too: with the root key's source away there are the page, the log and the metric.
        log.error("Nobody could be mailed about backups (%s): %s", cause.label, error)


@transaction.atomic
def _mail_owners(organisation: Organisation, cause: Cause) -> None:
    subject = f"Backups of {organisation}: {cause.label}"[:255]
    proved = EmailAddress.objects.filter(verified=True).values("user_id")
    owners = Membership.objects.filter(organisation=organisation, role=Membership.Role.OWNER)
    # Locked, so that two workers who find the same thing at once send one mail.
    people = User.objects.select_for_update().filter(is_active=True, pk__in=owners.values("user_id")).order_by("pk")
    recent = Mail.objects.filter(subject=subject, created__gt=timezone.now() - AGAIN_AFTER)
    due = [each for each in people.filter(pk__in=proved) if not recent.filter(recipient=each.email).exists()]
    if due:
        alarms = Alarm.objects.filter(cause=cause, server__organisation=organisation)
        first = alarms.select_related("server").first()
        if first is not None:
            page = reverse("server_backups", args=[organisation.slug, first.server_id])
            text = _text(alarms, public_url(page), "The people who run this Hearth were told too.")
            for person in due:
                queue_mail(recipient=person.email, subject=subject, text=text)


def _text(alarms: QuerySet[Alarm], page: str, end: str = "") -> str:
    rows, count = list(alarms.select_related("server")[:SHOWN]), alarms.count()
    lines = [f"{each.server}: {each.text}" for each in rows]
    more = [f"And {count - len(rows)} more."] if count > len(rows) else []
    return "\n\n".join(["Hello,", *lines, *more, *([end] if end else []), f"Look here: {page}", "Hearth"]) + "\n"


def _told(at: datetime | None) -> str:
    return f"{at:%Y-%m-%d %H:%M} UTC" if at else "an unknown time"
