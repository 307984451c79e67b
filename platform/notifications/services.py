"""The verbs on mails: queue one, deliver what is due, try one again. The only writer of the table."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import Any

from django.db import transaction
from django.utils import timezone

from audit import services as audit
from notifications import transport
from notifications.models import Mail

MAX_ATTEMPTS = 8
FIRST_PAUSE = timedelta(seconds=30)
LONGEST_PAUSE = timedelta(hours=6)
BATCH = 100
KEPT = timedelta(days=30)

log = logging.getLogger(__name__)
_wake: list[Callable[[], None]] = []


def register_wake(callback: Callable[[], None]) -> None:
    """Have `callback()` called after each commit that queued a mail. It is only a hint: a sweep finds the mail too."""
    _wake.append(callback)


def queue_mail(*, recipient: str, subject: str, text: str) -> Mail:
    """Write one mail, inside the caller's transaction. Without an SMTP server it goes to the inbox page at once."""
    state = Mail.State.QUEUED if transport.configured() else Mail.State.INBOX
    mail = Mail.objects.create(recipient=recipient, subject=subject[:255], text=text, state=state)
    if state == Mail.State.QUEUED:
        transaction.on_commit(_wake_all, robust=True)
    return mail


def deliver_due(limit: int = BATCH) -> int:
    """Send the mails whose time has come; return how many left. Any number of workers may do this at once."""
    now = timezone.now()
    due = Mail.objects.filter(state=Mail.State.QUEUED, next_attempt__lte=now).order_by("next_attempt")
    claims = list(due.values_list("pk", "attempts")[:limit])
    return sum(_deliver(pk, attempts) for pk, attempts in claims)


def retry(actor: Any, mails: Iterable[Mail]) -> int:
    """Queue mails that were given up once more; return how many."""
    with transaction.atomic():
        chosen = list(
            Mail.objects.select_for_update()
            .filter(pk__in=[mail.pk for mail in mails], state=Mail.State.FAILED)
            .defer("text")
        )
        for mail in chosen:
            audit.record(actor=actor, verb="mail.retry", object=mail)
        Mail.objects.filter(pk__in=[mail.pk for mail in chosen]).update(
            state=Mail.State.QUEUED, attempts=0, next_attempt=timezone.now(), error=""
        )
        transaction.on_commit(_wake_all, robust=True)
    return len(chosen)


def send_test(actor: Any, recipient: str) -> tuple[bool, str]:
    """Send a mail to `recipient` right now; return whether it left and what happened, in a sentence."""
    subject, text = "Test mail from Hearth", "This mail shows that Hearth can send mail. There is nothing to do.\n"
    if not transport.configured():
        queue_mail(recipient=recipient, subject=subject, text=text)
        return False, "No mail server is set (HEARTH_SMTP_URL), so the mail is in the inbox page on this machine."
    try:
        transport.send(recipient, subject, text)
    except Exception as error:  # whatever the server or the network did is the result that was asked for
        return False, f"The test mail did not leave. {transport.explain(error)}"
    with transaction.atomic():
        mail = Mail.objects.create(
            recipient=recipient, subject=subject, text="", state=Mail.State.SENT, sent=timezone.now(), attempts=1
        )
        audit.record(actor=actor, verb="mail.test", object=mail)
    return True, f"The mail server took the test mail to {recipient}."


def prune(*, at_once: int = 10_000) -> int:
    """Remove mails older than thirty days, whatever became of them, a bounded number at a time; return how many."""
    ended = Mail.objects.exclude(state=Mail.State.QUEUED).filter(created__lt=timezone.now() - KEPT)
    return Mail.objects.filter(pk__in=list(ended.order_by("created").values_list("pk", flat=True)[:at_once])).delete()[
        0
    ]


def pause_after(attempts: int) -> timedelta:
    """Return how long to wait after so many tries: 30 s, then four times longer each time, at most 6 h."""
    longer: int = 4 ** max(0, min(attempts - 1, 10))
    return min(FIRST_PAUSE * longer, LONGEST_PAUSE)


def _deliver(pk: uuid.UUID, attempts: int) -> bool:
    # Whoever changes the count has the mail. It is pushed ahead first: a worker that dies sends late, and never blocks.
    claimed = Mail.objects.filter(pk=pk, state=Mail.State.QUEUED, attempts=attempts).update(
        attempts=attempts + 1, next_attempt=timezone.now() + pause_after(attempts + 1)
    )
    if not claimed:
        return False
    try:
        mail = Mail.objects.get(pk=pk)
        transport.send(mail.recipient, mail.subject, mail.text)
    except Exception as error:  # one bad mail, sealed text or answer must not stop the others
        _failed(pk, attempts + 1, error)
        return False
    Mail.objects.filter(pk=pk).update(state=Mail.State.SENT, sent=timezone.now(), error="", text="")
    return True


def _failed(pk: uuid.UUID, attempts: int, error: Exception) -> None:
    given_up = attempts >= MAX_ATTEMPTS or transport.is_final(error)
    state = Mail.State.FAILED if given_up else Mail.State.QUEUED
    Mail.objects.filter(pk=pk).update(state=state, error=transport.explain(error))
    log.warning("Mail %s was not sent (try %d): %s", pk, attempts, transport.explain(error))


def _wake_all() -> None:
    for callback in _wake:
        callback()
