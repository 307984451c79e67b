"""What the steps of operations about backups do (`provisioning.steps.STEPS` has their order). Each may be done again.

Until `settle` nothing touches the living server: all happens in the instance. `settle` stops the server, so that what
it says of locks and sessions is the last word; where that or the exchange fails, it is started again as it was.
"""

from __future__ import annotations

import contextlib
import logging
import uuid
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from django.conf import settings
from django.db import InterfaceError, OperationalError
from django.db.models.functions import Now
from django.utils import timezone
from django.views.decorators.debug import sensitive_variables

from backups import recoveries
from backups.exporting import giving_way, requests
from backups.models import Restore
from backups.restoring import choices, grants
from backups.restoring.away import patient
from backups.restoring.reads import counted_from, exchanged, knows_less
from backups.restoring.verbs import Kind
from provisioning import checks, services
from provisioning.engine import MAX_ATTEMPTS
from provisioning.leases import LeaseLostError
from provisioning.models import Operation, ServerStatus
from provisioning.providers.base import ProviderError, Recovering, Recovery, ServerSpec, StaleFence
from provisioning.spec import build
from provisioning.steps import Context, NotYet
from security.errors import SecurityError
from tenants.errors import Refused
from tenants.models import Server

log = logging.getLogger(__name__)
Holds = Restore.Holds
STUCK = timedelta(hours=3)
"""A restore that has not come on for so long never will."""
MOST_FAILURES = 5
"""So often it is tried in vain, without a byte more, before its people are told."""
OTHERS = (NotYet, LeaseLostError, StaleFence, OperationalError, InterfaceError)
"""After these the operation goes on: a step that has stopped the server leaves it so for whoever does."""
SAID = {
    "plan": "Looking which objects are needed, and whether they are all there.",
    "base": "Reading the database.",
    "replay": "Replaying what changed until the wanted moment.",
    "settle": "Carrying over who is locked and who was signed out since then.",
    "media": "Reading the rest of the files.",
    "finish": "Writing everything to the disk.",
    "files": "Reading the files.",
    "dump": "Writing the database out.",
    "archive": "Sealing the archive, and putting it into the store.",
}


def look(context: Context) -> None:
    """Look again whether it can be restored: what was whole when it was asked for may be damaged by now."""
    row = row_of(context)
    _refuse_deleted(context)
    try:
        choice = choices.choose(row.source, point=row.point, moment=None if row.point else row.moment, store=row.store)
    except Refused as refusal:
        raise ProviderError(refusal.message, code="NotRestorable", retry=False) from None
    _save(context, row, version=choice.version)
    at = f"{choice.moment:%Y-%m-%d %H:%M:%S} UTC"
    context.log(f"What the server was at {at} is brought back from “{row.store}”, with Synapse {choice.version}.")


def environment(context: Context) -> None:
    """Make what Synapse needs in the version that the data go with."""
    context.provider.prepare(row_of(context).version, context.log)


def recover(context: Context) -> None:
    """Have the provider bring the data back, and look how far that is."""
    row = row_of(context)
    _refuse_deleted(context)
    grant = grants.keep(context, row)
    found = context.provider.recovering(str(row.instance))
    waits = found.state == "running"
    if found.state == "done":
        _finished(context, row, found)
        return
    if row.mode == Restore.Mode.EXPORT:
        giving_way.give_way(context, row)
    if found.state in ("failed", "cancelled") and row.called:
        raise _failed(context, row, found)
    if not waits or grant != row.grant:
        since = None if row.mode == Restore.Mode.EXPORT else _since(context, row)
        _call(context, row, _asked(context, row, grant), since=since)
    _follow(context, row, found if waits else Recovering(state="running"))
    raise NotYet


def trial(context: Context) -> None:
    """Start what was brought back, beside the server, and ask it what a client and another server would ask."""
    row = row_of(context)
    try:
        address, found = _tried(context, row)
    except ProviderError as error:
        if not error.retry or _is_last_try(context):
            _stop_instance(context, row)
        raise
    context.log(f"What was brought back answers as Synapse {found.version} and signs with {found.key_id}.")
    _save(context, row, holds=Holds.COPY, address=address, keep_until=kept_until())


def settle(context: Context) -> None:
    """Stop the server, and let the data that it gets know what it knows: who is locked, who was signed out."""
    row = row_of(context)
    try:
        with patient(context):
            _settle(context, row)
    except OTHERS:
        raise
    except Exception:
        _save(context, row, called=False)
        _start_again(context)
        raise
    _save(context, row, called=False)
    context.note("")


def exchange(context: Context) -> None:
    """Give the server the other data, and with them the version that they go with."""
    row = row_of(context)
    restored = context.operation.kind != Kind.GO_BACK
    server, instance = str(context.server.pk), str(row.instance)
    try:
        with patient(context):
            context.provider.exchange(server, instance, restored=restored, fence=context.fence, progress=context.log)
    except OTHERS:
        raise
    except Exception:
        # Who was cut off has perhaps begun it, and what is begun is made: at the next start of anything.
        with patient(context):
            begun = context.provider.recovering(instance).exchanged is restored
        if not begun:
            _start_again(context)
            raise
        context.log("The exchange was cut off after it had begun, so it goes on.")
    with context.transaction():
        _exchanged(context, row, restored=restored)
    context.note("")
    kept = "What it had before" if restored else "What was restored"
    context.log(f"The server has the other data. {kept} is kept until {kept_until():%Y-%m-%d} (UTC).")


def drop(context: Context) -> None:
    """Remove the instance with all its data, unless it holds something else than its owner was told."""
    row = row_of(context)
    exchanged = context.provider.recovering(str(row.instance)).exchanged
    if exchanged is not None and exchanged != (row.holds == Holds.BEFORE):
        holds = Holds.BEFORE if exchanged else Holds.COPY
        _save(context, row, holds=holds, address="", keep_until=kept_until(), switched=Now() if exchanged else None)
        raise ProviderError(
            f"The copy holds something else than was written here: {row.get_holds_display().lower()}. So nothing was "
            "removed. Look at the backups of the server, and remove it there if nobody needs it.",
            code="HoldsOther",
            retry=False,
        )
    remove_instance(context, row)


def remove_all(context: Context) -> None:
    """Remove all instances of a server that is itself about to be removed."""
    for row in Restore.objects.filter(source=context.server).exclude(holds=Holds.GONE):
        remove_instance(context, row)


def row_of(context: Context) -> Restore:
    """Return what the operation is about."""
    rows = Restore.objects.select_related("source", "source__organisation", "store")
    return rows.get(pk=context.operation.wanted["restore"])


def kept_until() -> datetime:
    """Return until when an instance is kept that nobody removes before."""
    return timezone.now() + timedelta(days=settings.HEARTH["HEARTH_RESTORE_KEEP_DAYS"])


def _tried(context: Context, row: Restore) -> tuple[str, checks.Answers]:
    """Start the instance, and return its address and what it answered. Raises `ProviderError`."""
    spec = _spec(context, row)
    context.provider.configure(spec, fence=context.fence, progress=context.log)
    url = context.provider.start(spec, fence=context.fence, progress=context.log)
    route = context.provider.route(str(row.instance), url)
    found = checks.run(route, context.server.server_name, context.secrets)
    if found.version != row.version:
        raise ProviderError(
            f"What was brought back runs Synapse {found.version or 'of an unknown version'}, not {row.version}. The "
            "server itself was not touched.",
            code="WrongVersion",
        )
    return url, found


def _is_last_try(context: Context) -> bool:
    attempts = Operation.objects.values_list("attempts", flat=True).get(pk=context.operation.pk)
    return attempts >= MAX_ATTEMPTS


def _stop_instance(context: Context, row: Restore) -> None:
    """Let nothing run on what is kept for a day so that somebody can try again."""
    with contextlib.suppress(ProviderError):
        context.provider.stop(str(row.instance), fence=context.fence, progress=lambda _: None)


def _settle(context: Context, row: Restore) -> None:
    if row.called:
        found = context.provider.recovering(str(row.instance))
        if found.state == "done":
            return
        if found.state in ("failed", "cancelled"):
            raise _failed(context, row, found)
        if found.state == "running":
            _follow(context, row, found)
            raise NotYet
    asked = _asked(context, row, row.grant or row.instance)  # before the server stops: it opens what is sealed
    context.provider.stop(str(context.server.pk), fence=context.fence, progress=context.log)
    since = _since(context, row, fence=context.fence)
    if since is None:
        context.log("The server can't say who was signed out since then, so everybody has to sign in again.")
    _call(context, row, asked, since=since)
    raise NotYet


def _since(context: Context, row: Restore, *, fence: int | None = None) -> Any:
    """Return what the living server says of now; of a database that was made anew since the moment, its streams alone.

    Such a one knows nobody: to believe it would unlock who was locked, and end everybody's sessions. `fence`: it was
    stopped under that, and stays so.
    """
    found = context.provider.since(str(context.server.pk), fence=fence)
    done = Operation.objects.filter(server=context.server, state=Operation.State.SUCCEEDED)
    last = done.filter(kind=Kind.CREATE, created__gt=row.moment).order_by("-created").first()
    if found is None or last is None or exchanged().filter(server=context.server, created__gt=last.created).exists():
        return found
    return recoveries.streams_alone(found)


@sensitive_variables()
def _asked(context: Context, row: Restore, grant: uuid.UUID) -> tuple[ServerSpec, Recovery]:
    """Return what the provider is asked for, all but what the living server says of now."""
    latest = bool(row.point) or requests.is_latest(row)
    wanted = recoveries.Wanted(
        source=row.source, store=row.store, point=row.point, moment=None if latest else row.moment
    )
    try:
        spec = _spec(context, row)
        found = recoveries.recovery(wanted, spec, holder=context.server.pk, grant=grant, settle={})
        return spec, replace(found, export=requests.asked(row))
    except SecurityError:
        log.warning("The secrets for restore %s can't be opened.", row.pk, exc_info=True)
        raise ProviderError(
            "Hearth can't open the server's secrets just now. The server runs on, and its data and backups are safe.",
            code="SecretsSealed",
        ) from None


@sensitive_variables()
def _call(context: Context, row: Restore, asked: tuple[ServerSpec, Recovery], *, since: Any) -> None:
    spec, found = asked
    grant = uuid.UUID(found.request["grant"])
    older = context.operation.kind == Kind.GO_BACK or (row.moment is not None and knows_less(row.source, row.moment))
    moment = counted_from(row, back=context.operation.kind == Kind.GO_BACK)
    request = {**found.request, "settle": recoveries.settle(since, older=older, moment=moment)}
    context.provider.recover(spec, replace(found, request=request), fence=context.fence, progress=context.log)
    now = timezone.now()
    opened = {} if grant in (row.grant, row.instance) else {"grant": grant, "grant_fence": context.fence}
    # The provider stops the instance for it, so nobody can look into it any more.
    _save(context, row, called=True, begun=row.begun or now, progressed=now, address="", **opened)


def _spec(context: Context, row: Restore) -> ServerSpec:
    return recoveries.instance_spec(context.spec, row.instance, row.version)


def _follow(context: Context, row: Restore, found: Recovering) -> None:
    """Write down how far it is. Raises `ProviderError` when it has not come on for hours."""
    told = SAID.get(found.step, "")
    if told and not context.operation.events.filter(step=context.step, message=told).exists():
        context.log(told)
    if found.total_bytes:
        context.note(_far(found))
    changes: dict[str, Any] = {"seconds_left": found.seconds_left}
    moved = found.done_bytes != row.done_bytes or row.progressed is None
    if moved:
        changes |= {"done_bytes": found.done_bytes, "total_bytes": found.total_bytes or row.total_bytes}
        changes["progressed"] = timezone.now()
        # Of an export, bytes say nothing of that: each of its phases counts anew, and they are made again.
        if row.failures and row.mode != Restore.Mode.EXPORT and found.done_bytes > row.failed_bytes:
            changes["failures"] = 0
    elif row.progressed is not None and timezone.now() - row.progressed > STUCK:
        hours = STUCK.total_seconds() / 3600
        raise ProviderError(
            f"The restore has not come on for {hours:.0f} hours, so it was given up. The server itself was not "
            "touched. Try again; if it stays so, ask support.",
            code="RestoreStuck",
            retry=False,
        )
    if any(getattr(row, name) != value for name, value in changes.items()):
        _save(context, row, **changes)


def _far(found: Recovering) -> str:
    left = found.seconds_left
    done = "written" if found.step in ("dump", "archive") else "read"
    text = f"{found.done_bytes / 10**6:,.0f} of {found.total_bytes / 10**6:,.0f} MB are {done}"
    if left is None or found.step not in ("base", "media", "files", "archive"):
        return f"{text}."
    return f"{text}, about {left} s left." if left < 90 else f"{text}, about {left / 60:.0f} minutes left."


def _finished(context: Context, row: Restore, found: Recovering) -> None:
    result = dict(found.result)
    begun = row.begun or timezone.now()
    _save(
        context,
        row,
        called=False,
        seconds=max((timezone.now() - begun).total_seconds(), 0.1),
        done_bytes=found.total_bytes or row.done_bytes,
        total_bytes=found.total_bytes or row.total_bytes,
        seconds_left=None,
        recovered_to=_time(result.get("last_commit")),
        evidence=result,
    )
    context.note("")
    last = result.get("last_commit")
    done = "The archive is written." if row.mode == Restore.Mode.EXPORT else "All of it is back."
    context.log(f"{done} The last change in it is of {last}." if last else done)


def _time(text: Any) -> datetime | None:
    with contextlib.suppress(ValueError, TypeError):
        found = datetime.fromisoformat(text)
        return found if found.tzinfo else None
    return None


def _failed(context: Context, row: Restore, found: Recovering) -> ProviderError:
    """Write down that what the provider was asked for failed, and return that failure.

    The operation's own tries don't count these: between two of them it waits, which is no failure.
    """
    failures = row.failures + 1
    _save(context, row, called=False, failures=failures, failed_bytes=max(row.failed_bytes, row.done_bytes))
    text = found.text or "The restore was broken off. The server itself was not touched."
    retry = (found.retry or found.state == "cancelled") and failures < MOST_FAILURES
    return ProviderError(text, code=found.code or "RestoreFailed", retry=retry)


def _exchanged(context: Context, row: Restore, *, restored: bool) -> None:
    """Write down who has what now. Inside the lease's transaction; again changes nothing."""
    if (row.holds == Holds.BEFORE) == restored:
        return
    values: dict[str, Any] = {"holds": Holds.BEFORE if restored else Holds.COPY, "address": ""}
    values |= {"keep_until": kept_until(), "switched": Now() if restored else None}
    # What the server ran until now goes with what it gives away; it may have been upgraded since it got that.
    values["version_before" if restored else "version"] = _version_now(context)
    Restore.objects.filter(pk=row.pk).update(**values)
    services.adopt_version(context.operation, row.version if restored else row.version_before)


def _start_again(context: Context) -> None:
    """Let the server run as before, as far as that is possible; whatever comes of it, the cause is what is told."""
    context.log("It could not be done, so the server is started again as it was.")
    try:
        spec = context.spec
    except SecurityError:  # it is written there already, and only named here
        applied = ServerStatus.objects.values_list("applied", flat=True).get(server=context.server)
        spec = build(context.server, context.operation.kind, context.operation.wanted, applied, {})
    with contextlib.suppress(ProviderError):
        spec = replace(spec, version=_version_now(context))
        context.provider.start(spec, fence=context.fence, progress=context.log)


def _version_now(context: Context) -> str:
    applied = ServerStatus.objects.values_list("applied", flat=True).get(server=context.server)
    return str(applied["version"])


def _refuse_deleted(context: Context) -> None:
    desired = Server.objects.values_list("desired", flat=True).get(pk=context.server.pk)
    if desired == Server.Desired.DELETED:
        raise ProviderError(
            "The server is being deleted, so the restore was given up. What was fetched is removed.",
            code="ServerDeleted",
            retry=False,
        )


def remove_instance(context: Context, row: Restore) -> None:
    """Remove an instance with all its data. Again is fine."""
    instance = str(row.instance)
    try:
        context.provider.cancel_recovery(instance, fence=context.fence)
    except ProviderError as error:
        if error.code != "NoSuchServer":
            raise
    context.provider.remove(instance, fence=context.fence, progress=context.log)
    _save(context, row, holds=Holds.GONE, address="", keep_until=None)


def _save(context: Context, row: Restore, **values: Any) -> None:
    with context.transaction():
        Restore.objects.filter(pk=row.pk).update(**values)
    for name, value in values.items():
        setattr(row, name, value)
