"""The verbs on operations, and the only place where operations are made.

`reconcile` is level-triggered: it compares what is wanted with what was carried out, and may be called at any time by
anybody. The database allows one open operation a server, so two callers at once make one.
"""

from __future__ import annotations

import uuid
from datetime import timedelta
from typing import Any

from django.db import IntegrityError, transaction
from django.db.models.functions import Now
from django.utils import timezone

from audit.services import SYSTEM, record
from provisioning import seams, secrets, wake
from provisioning.fleet import may_federate
from provisioning.leases import from_now, last_fence
from provisioning.models import Operation, OperationEvent, OperationStep, Region, ServerSecret, ServerStatus
from provisioning.spec import ABOUT_BACKUPS, decide, wanted
from provisioning.status_writer import deciding_operation, publish
from provisioning.steps import STEPS
from tenants.errors import Refused
from tenants.models import Server
from tenants.services.removal import mark_deleted
from tenants.services.servers import adopt_version as adopt

State, StepState, Kind = Operation.State, OperationStep.State, Operation.Kind


def reconcile(server_id: uuid.UUID) -> Operation | None:
    """Make the operation that the server needs next and return it; None when there is none to make."""
    try:
        with transaction.atomic():
            return _reconcile(server_id)
    except IntegrityError:
        return None  # somebody else made it in the same moment


def _reconcile(server_id: uuid.UUID) -> Operation | None:
    server = Server.objects.get(pk=server_id)
    status, _ = ServerStatus.objects.get_or_create(server=server)
    if server.deleted or Operation.objects.filter(server=server, state__in=Operation.OPEN).exists():
        return None
    want = wanted(server, federation=may_federate(server), now=timezone.now())
    kind = decide(want, status.applied)
    if kind is None:
        later = ServerStatus.objects.filter(pk=status.pk, observed_generation__lt=server.generation)
        later.update(observed_generation=server.generation)
        return None
    if _given_up(server, kind):
        return None
    return _make(server, kind, want)


def _given_up(server: Server, kind: str) -> bool:
    """Tell whether this was tried for this generation and ended: then a person decides, not a loop."""
    ended = (State.FAILED, State.CANCELLED)
    return Operation.objects.filter(server=server, generation=server.generation, kind=kind, state__in=ended).exists()


def _make(server: Server, kind: Operation.Kind, want: dict[str, Any]) -> Operation:
    # Providers remember the highest fence of a server, so it must rise from one operation to the next too.
    fence = last_fence(server.pk)
    operation = Operation.objects.create(
        server=server, kind=kind, generation=server.generation, wanted=want, run_after=Now(), fence=fence
    )
    OperationStep.objects.bulk_create(
        OperationStep(operation=operation, position=position, name=step.name, title=step.title)
        for position, step in enumerate(STEPS[kind])
    )
    publish(server.pk)
    return operation


@transaction.atomic
def begin(kind: Operation.Kind, *, server: Server, version: str = "", about: uuid.UUID | None = None) -> Operation:
    """Make an operation that follows from no difference between what is wanted and what is.

    Of those about backups `wanted["restore"]` names what they are about: themselves, or `about`. Raises `Refused`
    while another one is open.
    """
    locked = Server.objects.select_for_update(of=("self",)).get(pk=server.pk)
    if Operation.objects.filter(server=locked, state__in=Operation.OPEN).exists():
        raise Refused(
            "Something else is being done with this server just now. Nothing was changed. Wait until it has ended, or "
            "cancel it, and try again."
        )
    want = wanted(locked, federation=may_federate(locked), now=timezone.now())
    want["version"] = version or want["version"]
    operation = _make(locked, kind, want)
    if kind in ABOUT_BACKUPS:
        operation.wanted["restore"] = str(about or operation.pk)
        operation.save(update_fields=["wanted"])
    transaction.on_commit(lambda: wake.hint(operation.pk), robust=True)
    return operation


def adopt_version(operation: Operation, version: str) -> None:
    """Let the version that goes with data that were exchanged be what runs and what is wanted.

    Else Hearth would upgrade what somebody has just undone. Call it inside the lease's transaction.
    """
    server = adopt(actor=SYSTEM, server=operation.server, version=version)
    status = ServerStatus.objects.select_for_update().get(server=server)
    status.applied = {**status.applied, "version": version}
    status.save(update_fields=["applied"])
    # It is this operation that brings the new generation about, so what fails after it can be tried again. What else
    # is wanted by now is not carried out by it, and comes next.
    want = wanted(server, federation=may_federate(server), now=timezone.now())
    want["restore"] = operation.wanted["restore"]
    Operation.objects.filter(pk=operation.pk).update(generation=server.generation, wanted=want)


def cancellable(operation: Operation) -> bool:
    """Tell whether the operation can still end without anybody noticing: no step that commits has begun."""
    if operation.state not in Operation.OPEN:
        return False
    commits = [step.name for step in STEPS[operation.kind] if step.commits]
    return not operation.steps.filter(name__in=commits).exclude(state=StepState.WAITING).exists()


@transaction.atomic
def cancel_operation(actor: Any, *, operation: Operation) -> Operation:
    """Stop the operation: at once if nobody works on it, else before its next step. Refused when it is too late."""
    row = _locked(operation)
    if row.state not in Operation.OPEN:
        raise Refused(f"This is {row.get_state_display().lower()} already; there is nothing to cancel.")
    if not cancellable(row):
        raise Refused(_TOO_LATE.get(row.kind, _TOO_LATE_OTHER))
    if row.cancel_requested:
        return row
    _record(actor, "operation.cancel", row)
    row.cancel_requested = True
    row.save(update_fields=["cancel_requested"])
    _event(row, f"{actor} asked to cancel.")
    if row.lease_until is None:
        end_cancelled(row)
    return row


_TOO_LATE: dict[str, str] = {
    Kind.CREATE: "The server has been started, so making it can't be cancelled any more. Delete the server instead.",
    Kind.DELETE: "The server's data is being removed already, so this can't be cancelled any more.",
    Kind.RESTORE: "The server is being changed over already, so this can't be cancelled any more. Let it finish; then "
    "you can go back to what it had before.",
}
_TOO_LATE_OTHER = "This has gone too far to be cancelled safely: the server would be left half-changed. Let it finish."


@transaction.atomic
def retry_operation(actor: Any, *, operation: Operation) -> Operation:
    """Open a failed or cancelled operation again; it goes on with the step that did not finish."""
    row = _locked(operation)
    if row.state in Operation.OPEN:
        raise Refused("This is in progress already.")
    if row.state == State.SUCCEEDED:
        raise Refused("This is done already; there is nothing to try again.")
    standing = deciding_operation(row.server)
    if standing is None or standing.pk != row.pk:
        raise Refused("The server was changed after this, so trying it again could undo the newer change.")
    _record(actor, "operation.retry", row)
    row.steps.exclude(state=StepState.DONE).update(state=StepState.WAITING, finished=None)
    for name, value in _FRESH.items():
        setattr(row, name, value)
    row.fence = last_fence(row.server_id)
    row.save()
    row.refresh_from_db()
    _event(row, f"{actor} asked to try again.")
    publish(row.server_id)
    transaction.on_commit(lambda: wake.hint(row.pk), robust=True)
    return row


_FRESH: dict[str, Any] = {
    "state": State.QUEUED,
    "attempts": 0,
    "run_after": Now(),
    "lease_owner": "",
    "lease_until": None,
    "cancel_requested": False,
    "error_code": "",
    "error": "",
    "note": "",
    "finished": None,
}


@transaction.atomic
def reveal_password(actor: Any, *, server: Server) -> str:
    """Return the admin password and forget it: it is shown once. Two at once: one gets it."""
    changing = (Kind.CREATE, Kind.PASSWORD)
    if Operation.objects.filter(server=server, state__in=Operation.OPEN, kind__in=changing).exists():
        raise Refused("The password is being set just now. Wait until that is done; then it can be shown.")
    secret = ServerSecret.objects.select_for_update().filter(server=server, name=secrets.ADMIN_PASSWORD).first()
    if secret is None:
        raise Refused("The password was shown already and Hearth keeps no copy. Set a new one.")
    record(actor=actor, verb="server.reveal_password", object=server, organisation_id=server.organisation_id)
    value = str(secret.value)
    secret.delete()
    return value


@transaction.atomic
def change_region(actor: Any, *, region: Region, name: str, is_open: bool) -> Region:
    """Rename a region, or close it to new servers (open it again). Its servers go on as they are."""
    row = Region.objects.select_for_update().get(pk=region.pk)
    before = {"name": row.name, "open": row.open}
    row.name, row.open = name, is_open
    after = {"name": row.name, "open": row.open}
    if after != before:
        row.save(update_fields=["name", "open"])
        record(actor=actor, verb="region.change", object=row, before=before, after=after)
    return row


def end_cancelled(operation: Operation) -> None:
    """End an operation as cancelled. Call it inside the transaction that locked it."""
    operation.steps.exclude(state=StepState.DONE).update(state=StepState.SKIPPED)
    Operation.objects.filter(pk=operation.pk).update(
        state=State.CANCELLED, finished=Now(), lease_until=None, lease_owner="", error_code="Cancelled"
    )
    operation.state = State.CANCELLED
    _event(operation, _CANCELLED.get(operation.kind, _CANCELLED_OTHER))
    publish(operation.server_id)
    seams.ended(operation)


_NOT_TOUCHED = "Cancelled. The server was not touched. What was fetched beside it is removed."
_CANCELLED: dict[str, str] = {
    Kind.RESTORE: _NOT_TOUCHED,
    Kind.COPY: _NOT_TOUCHED,
    Kind.EXPORT: "Cancelled. The server was not touched. What was written for the export is removed.",
}
_CANCELLED_OTHER = "Cancelled. What was made so far stays until you try again or delete the server."


def hand_back(operation: Operation, *, after: timedelta = timedelta(0)) -> None:
    """Give the operation up, free for any worker `after` that time. Call it inside the lease's transaction."""
    Operation.objects.filter(pk=operation.pk).update(
        state=State.QUEUED, run_after=from_now(after), lease_until=None, lease_owner=""
    )


def desired_changed(server_id: uuid.UUID) -> None:
    """Make the operation right after a change was committed, and wake a worker. `tenants` calls it by its seam."""
    operation = reconcile(server_id)
    if operation is not None:
        wake.hint(operation.pk)


def finish_deletion(operation: Operation) -> None:
    """Close the row of a server whose data is gone, unless it is wanted again (then it is made anew, and empty)."""
    server = Server.objects.get(pk=operation.server_id)
    ServerStatus.objects.filter(server=server).update(homeserver_url="", version="", signing_key_id="", users=None)
    mark_deleted(server=server)


def _locked(operation: Operation) -> Operation:
    return Operation.objects.select_for_update(of=("self",)).select_related("server").get(pk=operation.pk)


def _record(actor: Any, verb: str, operation: Operation) -> None:
    server = operation.server
    details = {"server": str(server.pk), "kind": operation.kind, "state": operation.state}
    record(actor=actor, verb=verb, object=operation, organisation_id=server.organisation_id, before=details)


def _event(operation: Operation, message: str) -> None:
    OperationEvent.objects.create(operation=operation, message=message)
