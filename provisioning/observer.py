"""Ask each region's provider what is there, once for all its servers, and write it down: `ServerStatus` and `Sample`.

A server whose process is new must pass the protocol checks before it is called ready again; the others pass them every
few minutes. News that is older than what somebody else wrote meanwhile (the engine, at the end of an operation) is
dropped: the next look is seconds away.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import structlog
from django.db import DatabaseError, DataError, connection
from django.db.models import F
from django.utils import timezone

from provisioning import checks, identities, samples
from provisioning.fleet import provider_for
from provisioning.models import Operation, Region, ServerSecret, ServerStatus
from provisioning.providers.base import Observation, Provider, ProviderError
from provisioning.spec import RUNNING
from provisioning.status import Situation, evaluate
from provisioning.status_writer import deciders, decides, write

CHECK_EVERY, CHECK_AGAIN = timedelta(minutes=3), timedelta(seconds=10)
SEEN_EVERY = timedelta(seconds=30)
CHECKS_AT_ONCE, CHECKS_A_LOOK = 8, 64
LOOKS_EVERY = timedelta(seconds=5)
"""How often beat has everything looked at (`config.schedule`)."""
REGIONS_AT_ONCE = 20
LOCK = 0x4845415254  # PostgreSQL's advisory lock number: one observer at a time, however many workers there are
log = structlog.get_logger()


def observe() -> int:
    """Look once at every region; return how many statuses changed. Does nothing while another worker looks."""
    with _alone() as alone:
        return _look_at(list(Region.objects.all())) if alone else 0


def _look_at(regions: list[Region]) -> int:
    """Look at all regions beside each other: one that does not answer costs the others nothing."""
    if len(regions) < 2:
        return sum(map(observe_region, regions))
    with ThreadPoolExecutor(min(len(regions), REGIONS_AT_ONCE)) as threads:
        return sum(threads.map(_apart, regions))


def _apart(region: Region) -> int:
    try:
        return observe_region(region)
    except DatabaseError:
        log.exception("region_not_observed", region=region.code)
        return 0
    finally:
        connection.close()  # this thread's own


def observe_region(region: Region) -> int:
    """Look once at every server of `region`."""
    # Read before asking: what is written in between makes these rows too old to overwrite.
    statuses = list(
        ServerStatus.objects.select_related("server")
        .filter(server__region=region.code, server__deleted__isnull=True)
        .exclude(applied={})
        # A look checks a few of many: whoever has waited longest comes first, or some would never come.
        .order_by(F("next_check").asc(nulls_first=True))
    )
    unreachable, seen, provider = "", {}, None
    try:
        provider = provider_for(region)
        seen = dict(provider.observe())
    except ProviderError as error:
        unreachable = str(error)
        log.warning("provider_unreachable", region=region.code, error=unreachable)
    except Exception:
        # One region that can't be understood, or whose credentials can't be opened, must not hide the others.
        unreachable = "Hearth itself could not look at this region. Running servers and their data are not touched."
        log.exception("region_not_observed", region=region.code)
    now, every = timezone.now(), check_every(len(statuses))
    operations = deciding_operations([status.server_id for status in statuses])
    found = (
        {}
        if provider is None or unreachable
        else _checks(
            [s for s in statuses if _to_check(s, seen.get(str(s.pk)), operations, now, every)], seen, provider, every
        )
    )
    changed = 0
    for status in statuses:
        look = Look(operations.get(status.pk), seen.get(str(status.pk)), unreachable, found.get(status.pk, {}), now)
        try:
            changed += _update(status, look)
        except DataError:
            log.exception("status_not_written", server=str(status.pk))
    known = {str(status.pk): samples.Counted(status.users, status.media_bytes) for status in statuses}
    samples.take([item for item in seen.values() if item.server_id in known], known, now)
    _help_agents(region, statuses, seen, operations)
    return changed


def _help_agents(
    region: Region,
    statuses: Iterable[ServerStatus],
    seen: Mapping[str, Observation],
    operations: Mapping[uuid.UUID, Operation],
) -> None:
    """Give agents the certificates that they can't get by themselves, except where an operation works on the server."""
    busy = {str(key) for key, operation in operations.items() if operation.state in Operation.OPEN}
    ours = {str(status.pk) for status in statuses} - busy
    if asking := [item for item in seen.values() if item.server_id in ours]:
        identities.help_agents(provider_for(region), asking)


def deciding_operations(server_ids: list[uuid.UUID]) -> dict[uuid.UUID, Operation]:
    """Return, by server, the operation that its status depends on (`status_writer.deciding_operation` for many)."""
    newest = (
        deciders()
        .filter(server__in=server_ids)
        .select_related("server")
        .order_by("server_id", "-created")
        .distinct("server_id")
    )
    return {operation.server_id: operation for operation in newest if decides(operation, operation.server)}


def check_every(count: int) -> timedelta:
    """Return the time between two checks of a server where there are so many.

    Regular checks take at most half of what the looks can do, so that a server which failed one is not behind all of
    the others when it is to be checked again.
    """
    looks = -(-count // CHECKS_A_LOOK)
    return max(CHECK_EVERY, 2 * looks * LOOKS_EVERY)


def _to_check(
    status: ServerStatus,
    seen: Observation | None,
    operations: Mapping[uuid.UUID, Operation],
    now: datetime,
    every: timedelta,
) -> bool:
    if seen is None or not seen.running or seen.reason or status.applied.get("mode") != RUNNING:
        return False
    operation = operations.get(status.pk)
    if operation is not None and operation.state in Operation.OPEN:
        return False  # the operation checks by itself
    # One further ahead than any is set was written before the clock was put back.
    due = status.next_check is None or not now < status.next_check <= now + every
    return due or not _checked(status, seen)


def _checked(status: ServerStatus, seen: Observation | None) -> bool:
    """Tell whether the last checks began after the present process had started."""
    if seen is None or status.checked is None:
        return False
    return seen.started_at is None or datetime.fromtimestamp(seen.started_at, UTC) <= status.checked


def _checks(
    statuses: list[ServerStatus], seen: Mapping[str, Observation], provider: Provider, every: timedelta
) -> dict[uuid.UUID, dict[str, Any]]:
    chosen = statuses[:CHECKS_A_LOOK]
    secrets = _secrets([status.pk for status in chosen])
    with ThreadPoolExecutor(CHECKS_AT_ONCE) as threads:
        results = threads.map(
            lambda status: _check(status, seen[str(status.pk)], secrets.get(status.pk, {}), provider, every), chosen
        )
        return {status.pk: result for status, result in zip(chosen, results, strict=True)}


def _check(
    status: ServerStatus, seen: Observation, secrets: Mapping[str, str], provider: Provider, every: timedelta
) -> dict[str, Any]:
    """Return the fields to write. Runs in a thread that must not touch the database."""
    begun = timezone.now()
    fields: dict[str, Any] = {
        "checked": begun,
        "check_reason": "",
        "check_message": "",
        "next_check": begun + every,
    }
    try:
        url = provider.route(str(status.pk), seen.homeserver_url or status.homeserver_url)
        found = checks.run(url, status.server.server_name, secrets, count=not seen.metrics_url)
        fields |= {"version": found.version, "signing_key_id": found.key_id}
        fields |= {} if found.media_bytes is None else {"media_bytes": found.media_bytes}
        users = checks.count_users(seen.metrics_url) if seen.metrics_url else found.users
        fields |= {} if users is None else {"users": users}
    except ProviderError as error:
        if "version" not in fields:
            message = f"The server runs, but fails a check. {error} Hearth checks again in a moment."
            fields |= {"check_reason": error.code, "check_message": message, "next_check": begun + CHECK_AGAIN}
    except KeyError:
        message = "Hearth misses a secret of this server, so it can't check it. The data is untouched; ask support."
        fields |= {"check_reason": "SecretMissing", "check_message": message}
    except Exception:
        # What a customer's homeserver says must never keep Hearth from looking at the others.
        log.exception("check_failed", server=str(status.pk))
        message = "The server runs, but what it answers makes no sense. Its data is untouched; ask support."
        fields |= {"check_reason": "AnswerNotUnderstood", "check_message": message}
    return fields


def _secrets(server_ids: Iterable[uuid.UUID]) -> dict[uuid.UUID, dict[str, str]]:
    secrets: dict[uuid.UUID, dict[str, str]] = {}
    wanted = ServerSecret.objects.filter(server__in=list(server_ids), name__in=("signing_key", "jwt"))
    for secret in wanted.select_related("server"):
        secrets.setdefault(secret.server_id, {})[secret.name] = str(secret.value)
    return secrets


@dataclass(frozen=True)
class Look:
    """What one look found out about one server."""

    operation: Operation | None
    seen: Observation | None
    unreachable: str
    found: Mapping[str, Any]
    now: datetime


def _update(status: ServerStatus, look: Look) -> bool:
    seen, now = look.seen, look.now
    facts = {**_facts(status, seen, now), **look.found}
    for name, value in facts.items():
        setattr(status, name, value)
    verdict = evaluate(
        Situation(
            operation=look.operation,
            applied_mode=status.applied.get("mode", ""),
            unreachable=look.unreachable,
            seen=None if look.unreachable else seen or Observation(server_id=str(status.pk)),
            checked=_checked(status, seen),
            check_reason=status.check_reason,
            check_message=status.check_message,
        )
    )
    fresh = seen is None or (status.last_seen is not None and abs(now - status.last_seen) < SEEN_EVERY)
    if not facts and fresh and verdict == (status.phase, status.reason, status.message):
        return False
    if seen is not None:
        facts["last_seen"] = now
    return write(status, verdict, now=now, **facts)


def _facts(status: ServerStatus, seen: Observation | None, now: datetime) -> dict[str, Any]:
    """Return what changed against the row. Nothing is written for a server that stays as it is."""
    if seen is None:
        return {}
    started = datetime.fromtimestamp(seen.started_at, UTC) if seen.started_at else None
    facts: dict[str, Any] = {"isolation": seen.isolation, "crashes": seen.crashes, "process_started": started}
    if seen.homeserver_url:
        facts["homeserver_url"] = seen.homeserver_url
    if seen.crashes > status.crashes:
        facts["last_crash"] = now
    return {name: value for name, value in facts.items() if getattr(status, name) != value}


@contextmanager
def _alone() -> Iterator[bool]:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_try_advisory_lock(%s)", [LOCK])
        row = cursor.fetchone()
        alone = bool(row and row[0])
    try:
        yield alone
    finally:
        if alone:
            with connection.cursor() as cursor:
                cursor.execute("SELECT pg_advisory_unlock(%s)", [LOCK])
