"""One turn of a proof: its next steps, until it must wait or has ended.

Each step is short and idempotent. An expected failure is told as it is; a fault of Hearth's own ends the proof after
some tries, since a proof that never ends is one that nobody misses.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

from django.db import InterfaceError, OperationalError
from django.utils import timezone

from backups.engine.stores.base import StoreError
from backups.proofs import ends, reading, recovery, words
from backups.proofs.context import Context, Missed, NotYet, Unproved
from backups.proofs.leases import Lease, LeaseLostError, claim
from backups.proofs.models import Proof
from provisioning.providers.base import ProviderError, StaleFence
from security.errors import SecurityError

MOST_FAILURES = 20
FIRST_WAIT, LONGEST_WAIT = 2.0, 60.0
LONGEST = timedelta(hours=24)
"""From a proof's beginning on. What takes longer has failed: nobody waits a day for a server."""
FAULT = "Hearth has a fault: the staff's log says more. Backups and the server are not touched. It is tried again."
log = logging.getLogger(__name__)

Steps = Mapping[str, Callable[[Context], None]]
STEPS: Mapping[str, Steps] = {Proof.Kind.READING: reading.STEPS, Proof.Kind.RECOVERY: recovery.STEPS}


def run(pk: uuid.UUID) -> float | None:
    """Take one turn of a proof. Return in how many seconds another is worth it; None: it ended, or is not ours."""
    lease = claim(pk)
    if lease is None:
        return None
    try:
        with lease.kept() as lost:
            context = Context(lease=lease, lost=lost)
            try:
                _steps(context)
            except NotYet as waiting:
                lease.hand_back(waiting.after)
                return waiting.after.total_seconds()
            except (Missed, Unproved) as verdict:
                _end(lease, verdict.result, verdict, verdict.columns.get("evidence", lease.proof.evidence))
            except StaleFence:
                lease.set(fence=lease.fence + 1)
                lease.hand_back(timedelta(seconds=FIRST_WAIT))
            except (ProviderError, StoreError, SecurityError) as error:
                _failed(context, error, retry=getattr(error, "retry", True))
    except LeaseLostError:
        log.info("Somebody else has proof %s now.", pk)
    except (OperationalError, InterfaceError):
        log.warning("Proof %s was left without a database.", pk, exc_info=True)
    return None


def _steps(context: Context) -> None:
    steps = STEPS[context.proof.kind]
    try:
        if context.server.deleted:
            raise Missed("The server was deleted meanwhile.")
        while not context.proof.result:
            if context.proof.step != "begin" and timezone.now() - context.proof.begun > LONGEST:
                raise Unproved(f"It took longer than {LONGEST.total_seconds() / 3600:.0f} hours and was ended.")
            steps[context.proof.step](context)
    except (NotYet, Missed, Unproved, LeaseLostError, ProviderError, StoreError, SecurityError):
        raise
    except (OperationalError, InterfaceError):
        raise
    except Exception:
        log.exception("Proof %s broke at %s.", context.proof.pk, context.proof.step)
        _failed(context, Unproved(FAULT), retry=True, most=3)


def _failed(context: Context, error: Exception, *, retry: bool, most: int = 0) -> None:
    """Try the step again later, or end the proof."""
    lease, proof = context.lease, context.proof
    failures = proof.failures + 1
    if retry and failures < (most or MOST_FAILURES):
        text = words.told(str(error), proof.server).text
        log.warning("Proof %s is tried again at “%s”: %s", proof.pk, proof.step, text)
        lease.set(failures=failures)
        lease.hand_back(timedelta(seconds=min(FIRST_WAIT * 2**failures, LONGEST_WAIT)))
        return
    code = getattr(error, "code", "")
    # A place that could not do it says nothing about the backups, however far it came.
    said = context.was_tried and code not in recovery.NOT_OURS
    result = Proof.Result.FAILED if said else Proof.Result.MISSED
    _end(lease, result, error, proof.evidence | {"code": code})


def _end(lease: Lease, result: str, error: Exception, evidence: Mapping[str, Any]) -> None:
    found = words.told(str(error), lease.proof.server)
    ends.end(lease, result, found.text, evidence={**evidence, **found.more})
