"""Carry out one operation, step by step, while its lease is held.

Three kinds of end: it succeeded; it failed in a way that was foreseen (`ProviderError`: the reason is for the
customer); it crashed (anything else: the customer learns that Hearth has a fault, the staff's log has the traceback).
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from datetime import timedelta

import structlog
from django.db import InterfaceError, OperationalError, connection
from django.db.models import F, QuerySet
from django.db.models.functions import Greatest, Now

from provisioning import leases, seams, services
from provisioning.leases import Lease, LeaseLostError
from provisioning.models import Operation, OperationEvent, OperationStep, ServerStatus
from provisioning.providers.base import Observation, ProviderError, StaleFence
from provisioning.spec import carried_out, decide
from provisioning.status_writer import publish
from provisioning.steps import Context, NotYet, Step, find, together

State, StepState, Level = Operation.State, OperationStep.State, OperationEvent.Level
MAX_ATTEMPTS = 5
FIRST_WAIT, LONGEST_WAIT = 1.0, 60.0
HIGHEST = 1_000_000_000
"""No fence gets there: a higher number was not written by a Hearth."""
NOTHING_SEEN = tuple(Operation.Kind(kind) for kind in ("password", "delete", "copy", "drop", "export"))
"""Operations that end without having asked the server itself."""
stopping = threading.Event()
"""Set when this worker is told to stop: an operation is then left between two steps, free for the next worker."""
log = structlog.get_logger()


def run(operation_id: uuid.UUID) -> bool:
    """Work on the operation and on whatever its server wants after it. False if it was not ours to take."""
    lease = leases.claim(operation_id)
    taken = lease is not None
    while lease is not None:
        with structlog.contextvars.bound_contextvars(operation=str(lease.operation.pk), kind=lease.operation.kind):
            _work(lease)
        following = None if stopping.is_set() else services.reconcile(lease.operation.server_id)
        lease = leases.claim(following.pk) if following else None
    return taken


def _work(lease: Lease) -> None:
    context = Context(lease)
    try:
        with lease.kept():
            try:
                _steps(context)
            except NotYet as waiting:
                _wait(context, waiting.after)
            except ProviderError as error:
                if isinstance(error, StaleFence):
                    _overtaken(context, error)
                    return
                _expected(context, error)
    except LeaseLostError:
        log.info("operation_taken_over")
    except (OperationalError, InterfaceError):
        # Without the database nothing can be written down. The lease ends, and a worker that has one goes on.
        log.warning("operation_left_without_database", exc_info=True)
    except Exception:
        log.exception("operation_crashed", step=context.step)
        _crashed(context)


def _steps(context: Context) -> None:
    lease = context.lease
    with lease.write():
        publish(lease.operation.server_id)
    todo = list(lease.operation.steps.exclude(state=StepState.DONE).values_list("name", flat=True))
    while todo:
        steps = together(lease.operation.kind, todo)
        context.step = steps[-1].name
        if not _begin(context, steps):
            return
        _run(context, steps)
        with lease.write(attempts=0):
            _rows(lease, steps).update(state=StepState.DONE, finished=Now())
            seconds = _rows(lease, steps).latest("started").seconds or 0.0
            lease.event(f"Done in {seconds:.1f} s.", step=steps[-1].name)
        del todo[: len(steps)]
    _succeed(lease)


def _run(context: Context, steps: Sequence[Step]) -> None:
    *beside, main = steps
    if not beside:
        main.run(context)
        return
    with ThreadPoolExecutor(len(beside)) as threads:
        others = [threads.submit(copy_context().run, _apart, step, context) for step in beside]
        main.run(context)
    for step, other in zip(beside, others, strict=True):
        context.step = step.name  # if it failed, that is where
        other.result()


def _apart(step: Step, context: Context) -> None:
    try:
        step.run(context)
    finally:
        connection.close()  # this thread's own


def _wait(context: Context, after: timedelta) -> None:
    """Hand the operation back until its step is to be looked at again."""
    with context.lease.write(attempts=0) as operation:
        services.hand_back(operation, after=after)


def _rows(lease: Lease, steps: Sequence[Step]) -> QuerySet[OperationStep]:
    return OperationStep.objects.filter(operation=lease.operation, name__in=[step.name for step in steps])


def _begin(context: Context, steps: Sequence[Step]) -> bool:
    """Mark the steps as running. False: the operation was cancelled, given up or handed back: not ours any more."""
    lease, step = context.lease, steps[-1]
    with lease.write() as operation:
        if operation.cancel_requested and services.cancellable(operation):
            services.end_cancelled(operation)
            return False
        if stopping.is_set():
            services.hand_back(operation)
            return False
        if operation.attempts >= MAX_ATTEMPTS:
            # Each of these tries ended with its worker: the count is written before the step, so even a step that
            # kills whoever runs it comes to an end.
            message = f"“{step.title}” stopped {MAX_ATTEMPTS} times without an answer. Your data is kept. Try again."
            _fail(context, "WorkerLost", message)
            return False
        Operation.objects.filter(pk=operation.pk).update(attempts=operation.attempts + 1)
        # A try that failed or was cut off has counted: with none, it runs because it waits. Then that is no news.
        if not operation.attempts and _rows(lease, steps).filter(state=StepState.RUNNING).count() == len(steps):
            return True
        running = {"state": StepState.RUNNING, "attempts": operation.attempts + 1}
        _rows(lease, steps).update(**running, finished=None, started=Now())
        again = f" (try {operation.attempts + 1} of {MAX_ATTEMPTS})" if operation.attempts else ""
        for each in steps:
            lease.event(f"{each.title}{again}", step=each.name)
    return True


def _succeed(lease: Lease) -> None:
    with lease.write(state=State.SUCCEEDED, finished=Now(), lease_until=None, error="", error_code="") as operation:
        status = ServerStatus.objects.select_for_update().get(server=operation.server)
        applied = carried_out(operation.kind, operation.wanted, status.applied)
        status.applied = applied
        if not applied or decide(operation.wanted, applied) is None:
            status.observed_generation = operation.generation
        status.save(update_fields=["applied", "observed_generation"])
        if operation.kind == Operation.Kind.DELETE:
            services.finish_deletion(operation)
        lease.event(f"{operation.get_kind_display()}: done.")
        publish(operation.server_id, seen=_seen(operation))
        seams.ended(operation)


def _seen(operation: Operation) -> Observation | None:
    """What an operation that ended well has just seen with its own checks."""
    if operation.kind in NOTHING_SEEN:
        return None
    return Observation(server_id=str(operation.server_id), exists=True, running=True)


def _expected(context: Context, error: ProviderError) -> None:
    lease, sentence = context.lease, context.lease.redact(str(error))
    with lease.write() as operation:
        if not error.retry or operation.attempts >= MAX_ATTEMPTS:
            _fail(context, error.code, sentence)
            return
        wait = min(FIRST_WAIT * 2 ** (operation.attempts - 1), LONGEST_WAIT)
        lease.event(f"{sentence} Trying again in {wait:g} s.", step=context.step, level=Level.WARNING)
        services.hand_back(operation, after=timedelta(seconds=wait))


def _overtaken(context: Context, error: StaleFence) -> None:
    """Stop for the worker that took over; if nobody did, the fence is of a time that Hearth's database knows no more.

    That is so when the database was restored to an earlier moment. Then the next try has a higher fence than that one.
    """
    lease = context.lease
    seen = error.seen if error.seen < HIGHEST else 0
    with lease.write(fence=Greatest(F("fence"), seen)) as operation:
        if not error.seen and operation.attempts < MAX_ATTEMPTS:
            raise LeaseLostError  # which fence it was is not known: only somebody else can go on, if there is anybody
        if operation.attempts >= MAX_ATTEMPTS or not seen:
            _fail(
                context,
                "FenceAhead",
                "Where this server runs, somebody has changed it later than Hearth's database knows. Nothing was "
                "changed now and your data is kept. Ask support: another Hearth may work on it, or Hearth's database "
                "was restored to an earlier moment.",
            )
            return
        text = "Hearth's database is older than the last change of this server, so Hearth catches up. Trying again."
        lease.event(text, step=context.step, level=Level.WARNING)
        services.hand_back(operation)


def _crashed(context: Context) -> None:
    during = f" during “{find(context.operation.kind, context.step).title}”" if context.step else ""
    sentence = (
        f"Hearth itself failed{during}; the fault is not yours. Your server's data is kept. Try again; if it fails "
        f"again, tell support the number {str(context.operation.pk)[:8]}."
    )
    try:
        with context.lease.write():
            _fail(context, "InternalError", sentence)
    except LeaseLostError:
        log.info("operation_taken_over")
    except (OperationalError, InterfaceError):
        log.warning("operation_left_without_database", exc_info=True)


def _fail(context: Context, code: str, sentence: str) -> None:
    """End the operation as failed, in the present step. Call it inside a transaction of the lease."""
    lease = context.lease
    running = OperationStep.objects.filter(operation=lease.operation, state=StepState.RUNNING)
    failed = running.filter(name=context.step).update(state=StepState.FAILED, finished=Now())
    running.update(state=StepState.WAITING)  # what ran beside it
    name = context.step if failed else ""
    lease.event(sentence, step=name, level=Level.ERROR)
    Operation.objects.filter(pk=lease.operation.pk).update(
        state=State.FAILED, finished=Now(), lease_until=None, lease_owner="", error_code=code[:40], error=sentence
    )
    publish(lease.operation.server_id)
    seams.ended(Operation.objects.get(pk=lease.operation.pk))
