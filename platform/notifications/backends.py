"""Django's e-mail backend that only writes rows: a mail is part of the transaction that causes it."""

from __future__ import annotations

from collections.abc import Sequence

from django.core.mail import EmailMessage
from django.core.mail.backends.base import BaseEmailBackend

from notifications.services import queue_mail


class QueueBackend(BaseEmailBackend):
    """Whatever Django or a library sends becomes a `Mail`. If the transaction is rolled back, nobody gets it."""

    def send_messages(self, email_messages: Sequence[EmailMessage]) -> int:
        for message in email_messages:
            for recipient in message.recipients():
                queue_mail(recipient=recipient, subject=str(message.subject), text=str(message.body))
        return len(email_messages)
