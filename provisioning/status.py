"""A server's phase and reason as a pure function of what is known. One named reason for each cause."""

from __future__ import annotations

from dataclasses import dataclass

from provisioning.models import Operation, ServerStatus
from provisioning.providers.base import Observation
from provisioning.spec import ABOUT_BACKUPS, BROUGHT_BACK, CLOSED, RUNNING

Phase = ServerStatus.Phase
Kind = Operation.Kind
Verdict = tuple[str, str, str]
"""Phase, reason, and the reason in a sentence."""

QUEUED: Verdict = (Phase.PENDING, "Queued", "The server waits for a worker to make it.")
DOING: dict[str, Verdict] = {
    Kind.CREATE: (Phase.PROGRESSING, "Creating", "The server is being made."),
    Kind.CONFIGURE: (Phase.PROGRESSING, "Configuring", "Changes are being applied; it restarts for a moment."),
    Kind.RESTART: (Phase.PROGRESSING, "Restarting", "The server is restarting."),
    Kind.SUSPEND: (Phase.PROGRESSING, "Suspending", "The server is being closed to clients."),
    Kind.RESUME: (Phase.PROGRESSING, "Resuming", "The server is being opened again."),
    Kind.UPGRADE: (Phase.PROGRESSING, "Upgrading", "Synapse is being upgraded."),
    Kind.DELETE: (Phase.PROGRESSING, "Deleting", "The server and its data are being removed."),
}


@dataclass(frozen=True)
class Situation:
    """Everything the verdict depends on."""

    deleted: bool = False
    operation: Operation | None = None
    """The open operation, or else the newest failed or cancelled one of the present generation."""
    applied_mode: str = ""
    """Empty until the server was made."""
    unreachable: str = ""
    """Why the provider could not be asked; empty when it answered."""
    seen: Observation | None = None
    """None: nobody has looked since the last change."""
    checked: bool = False
    """The protocol checks passed since the present process started."""
    check_reason: str = ""
    check_message: str = ""


def evaluate(now: Situation) -> Verdict:
    """Return phase, reason and message. The order of the questions is the order of what a person must know first."""
    if now.deleted:
        return Phase.DELETED, "Deleted", "The server and its data are gone."
    return _by_operation(now) or _by_life(now)


def _by_operation(now: Situation) -> Verdict | None:
    operation = now.operation
    if operation is None:
        return None
    if operation.state in Operation.OPEN:
        if operation.started is None and operation.kind == Kind.CREATE:
            return QUEUED
        # A new password changes nothing for the people who use the server.
        return DOING.get(operation.kind)
    if operation.state == Operation.State.CANCELLED and not now.applied_mode:
        return Phase.FAILED, "Cancelled", "Making the server was cancelled. Try again, or delete it."
    if operation.state == Operation.State.FAILED and (not now.applied_mode or operation.kind == Kind.DELETE):
        return Phase.FAILED, operation.error_code, operation.error
    return None


def _by_life(now: Situation) -> Verdict:
    if not now.applied_mode:
        return QUEUED
    if now.unreachable:
        message = "Hearth can't ask the machine that runs this server, so it can't say how it is now. "
        return Phase.DEGRADED, "ProviderUnreachable", f"{message}{now.unreachable} Hearth keeps asking."
    trouble = _failed_change(now) if now.applied_mode == RUNNING and not _about_backups(now) else None
    seen = now.seen
    if seen is None:
        return trouble or (Phase.PROGRESSING, "Observing", "Hearth is looking how the server is.")
    if not seen.exists:
        return (
            Phase.FAILED,
            "ServerMissing",
            "The machine does not know this server any more. Ask support before you change anything.",
        )
    if now.applied_mode != RUNNING:
        return _suspended(now.applied_mode)
    return _not_serving(now, seen) or trouble or (Phase.READY, "", "")


def _suspended(mode: str) -> Verdict:
    if mode == CLOSED:
        message = "The server is closed and will be deleted at the end of its grace period."
        return Phase.SUSPENDED, "DeletionScheduled", message
    return Phase.SUSPENDED, "Suspended", "The server is closed to clients; its data is kept."


def _about_backups(now: Situation) -> bool:
    """Tell whether the operation works beside the server, which is then as good as it answers."""
    return now.operation is not None and now.operation.kind in ABOUT_BACKUPS


def _not_serving(now: Situation, seen: Observation) -> Verdict | None:
    operation = now.operation
    if not seen.running and operation and operation.kind in BROUGHT_BACK and operation.state in Operation.OPEN:
        return Phase.PROGRESSING, "Restoring", "The server is changed over to other data; it is away for a moment."
    if not seen.running and not seen.reason and (trouble := _failed_change(now)):
        # It was stopped for the change that then failed: nobody starts it again by itself.
        return trouble[0], trouble[1], f"The server is stopped. {trouble[2]} Try again to bring it back."
    if not seen.running or seen.reason:
        reason = seen.reason or "NotRunning"
        phase = Phase.FAILED if reason == "SigningKeyMismatch" else Phase.DEGRADED
        return phase, reason, seen.message or "The server is stopped. Restart it to bring it back."
    if now.check_reason:
        return Phase.DEGRADED, now.check_reason, now.check_message
    if not now.checked:
        return Phase.PROGRESSING, "Checking", "The server has started; Hearth checks that it answers."
    return None


def _failed_change(now: Situation) -> Verdict | None:
    operation = now.operation
    if operation is None or operation.state != Operation.State.FAILED:
        return None
    return Phase.DEGRADED, operation.error_code, f"“{operation.get_kind_display()}” failed. {operation.error}"
