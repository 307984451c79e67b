"""How a mail leaves: by SMTP, or not at all where no server is set (then the inbox page shows it)."""

from __future__ import annotations

import smtplib

from django.conf import settings
from django.core.mail import EmailMessage
from django.core.mail.backends.smtp import EmailBackend


def configured() -> bool:
    """Tell whether an SMTP server is set."""
    return settings.SMTP is not None


def send(recipient: str, subject: str, text: str) -> None:
    """Hand one mail to the SMTP server. Raises what `smtplib` and the sockets raise."""
    with EmailBackend(**(settings.SMTP or {}), timeout=settings.EMAIL_TIMEOUT) as connection:
        EmailMessage(subject, text, settings.DEFAULT_FROM_EMAIL, [recipient], connection=connection).send()


def is_final(error: Exception) -> bool:
    """Tell whether the server refused this very mail for good (RFC 5321, 5yz), so that another try is pointless."""
    if isinstance(error, smtplib.SMTPRecipientsRefused):
        return all(code >= 500 for code, _ in error.recipients.values())
    return isinstance(error, smtplib.SMTPDataError) and error.smtp_code >= 500


def explain(error: Exception) -> str:
    """Return the failure for a person of the staff: what the server said, without the mail's text."""
    if isinstance(error, smtplib.SMTPRecipientsRefused):
        said = "; ".join(f"{code} {text.decode(errors='replace')}" for code, text in error.recipients.values())
        return f"The mail server refused the recipient: {said}"[:500]
    if isinstance(error, smtplib.SMTPResponseException):
        said = error.smtp_error if isinstance(error.smtp_error, str) else error.smtp_error.decode(errors="replace")
        return f"The mail server answered {error.smtp_code}: {said}"[:500]
    return f"{type(error).__name__}: {error}"[:500]
