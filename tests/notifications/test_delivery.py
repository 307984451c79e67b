"""Mails are rows first; they leave by a real SMTP server, and one that can't leave stops no other."""

from __future__ import annotations

import smtplib
import socket
import threading
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session
from django.core.mail import send_mail
from django.db import connection, transaction
from django.utils import timezone

from accounts.models import User
from audit.models import AuditEvent
from config.settings_identity import smtp
from notifications import services, transport
from notifications.models import Mail

pytestmark = pytest.mark.django_db


class Postbox:
    """Keeps what it is given. Refuses recipients at refused.example for good, and at busy.example for now."""

    def __init__(self) -> None:
        self.mails: list[Envelope] = []

    async def handle_RCPT(  # noqa: N802 (aiosmtpd's name)
        self, _server: SMTP, _session: Session, envelope: Envelope, address: str, _options: list[str]
    ) -> str:
        if address.endswith("@refused.example"):
            return "550 no such mailbox"
        if address.endswith("@busy.example"):
            return "451 try again later"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, _server: SMTP, _session: Session, envelope: Envelope) -> str:  # noqa: N802
        self.mails.append(envelope)
        return "250 OK"


@pytest.fixture
def postbox(settings: Any) -> Iterator[Postbox]:
    box = Postbox()

    def check(server: SMTP, session: Session, envelope: Envelope, mechanism: str, data: LoginPassword) -> AuthResult:
        return AuthResult(success=(data.login, data.password) == (b"hearth", b"s3cret/x"), handled=False)

    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    controller = Controller(box, hostname="127.0.0.1", port=port, authenticator=check, auth_require_tls=False)
    controller.start()
    settings.SMTP = smtp(f"smtp://hearth:s3cret%2Fx@127.0.0.1:{port}")
    yield box
    controller.stop()


def queue(recipient: str = "alice@example.org", text: str = "Open https://hearth.example/secret-link") -> Mail:
    return services.queue_mail(recipient=recipient, subject="Hello", text=text)


def due() -> None:
    """Make every waiting mail's time come."""
    Mail.objects.update(next_attempt=timezone.now() - timedelta(seconds=1))


def test_it_works(postbox: Postbox) -> None:
    send_mail("Hello", "Open https://hearth.example/secret-link", None, ["alice@example.org"])
    assert Mail.objects.get().state == Mail.State.QUEUED
    assert postbox.mails == []
    assert services.deliver_due() == 1
    sent = Mail.objects.get()
    assert (sent.state, sent.text, sent.error) == (Mail.State.SENT, "", "")
    assert isinstance(content := postbox.mails[0].content, bytes)
    assert b"secret-link" in content
    assert postbox.mails[0].rcpt_tos == ["alice@example.org"]
    assert services.deliver_due() == 0


def test_without_a_server_mails_stay_in_the_inbox() -> None:
    assert not transport.configured()
    queue()
    assert Mail.objects.get().state == Mail.State.INBOX
    assert services.deliver_due() == 0


def test_a_mail_belongs_to_the_transaction_that_causes_it(postbox: Postbox) -> None:
    def fails_later() -> None:
        with transaction.atomic():
            queue()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fails_later()
    assert not Mail.objects.exists()


@pytest.mark.django_db(transaction=True)
def test_a_commit_wakes_a_worker_and_a_dead_broker_spoils_nothing(
    postbox: Postbox, monkeypatch: pytest.MonkeyPatch, settings: Any
) -> None:
    woken: list[bool] = []
    monkeypatch.setattr(services, "_wake", [lambda: woken.append(True)])
    with transaction.atomic():
        queue()
        assert not woken
    assert woken == [True]

    def broken() -> None:
        raise ConnectionError("no broker")

    monkeypatch.setattr(services, "_wake", [broken])
    queue()
    assert Mail.objects.count() == 2


def test_the_text_is_sealed_in_the_database(postbox: Postbox) -> None:
    queue()
    with connection.cursor() as cursor:
        cursor.execute("select text from notifications_mail")
        assert b"secret-link" not in bytes(cursor.fetchone()[0])


def test_a_dead_server_loses_nothing(settings: Any, postbox: Postbox) -> None:
    alive = settings.SMTP
    settings.SMTP = smtp("smtp://127.0.0.1:1")
    queue()
    assert services.deliver_due() == 0
    waiting = Mail.objects.get()
    assert (waiting.state, waiting.attempts) == (Mail.State.QUEUED, 1)
    assert "refused" in waiting.error.lower()
    assert waiting.next_attempt > timezone.now() + timedelta(seconds=20)
    assert services.deliver_due() == 0
    settings.SMTP = alive
    due()
    assert services.deliver_due() == 1


def test_a_refused_recipient_is_given_up_at_once_and_blocks_nobody(postbox: Postbox) -> None:
    for recipient in ("a@refused.example", "b@busy.example", "alice@example.org"):
        queue(recipient)
    assert services.deliver_due() == 1
    states = dict(Mail.objects.values_list("recipient", "state"))
    assert states == {"a@refused.example": "failed", "b@busy.example": "queued", "alice@example.org": "sent"}
    assert "no such mailbox" in Mail.objects.get(state="failed").error


def test_a_poison_row_blocks_nobody(postbox: Postbox) -> None:
    poison = queue()
    with connection.cursor() as cursor:
        cursor.execute("update notifications_mail set text = %s where id = %s", [b"\x01broken" * 9, poison.pk])
    queue("bob@example.org")
    assert services.deliver_due() == 1
    assert "can't be opened" in Mail.objects.defer("text").get(pk=poison.pk).error


def test_it_gives_up_after_many_tries(postbox: Postbox) -> None:
    queue("b@busy.example")
    for _ in range(services.MAX_ATTEMPTS):
        due()
        services.deliver_due()
    given_up = Mail.objects.get()
    assert (given_up.state, given_up.attempts) == (Mail.State.FAILED, services.MAX_ATTEMPTS)
    assert "try again later" in given_up.error


def test_staff_can_try_again(postbox: Postbox, alice: User) -> None:
    mail = queue("a@refused.example")
    services.deliver_due()
    Mail.objects.filter(pk=mail.pk).update(recipient="bob@example.org")
    assert services.retry(alice, [mail]) == 1
    assert services.deliver_due() == 1
    assert AuditEvent.objects.filter(verb="mail.retry", object_id=str(mail.pk)).exists()
    assert services.retry(alice, [mail]) == 0


@pytest.mark.django_db(transaction=True)
def test_two_workers_send_a_mail_once(postbox: Postbox) -> None:
    for number in range(10):
        queue(f"person{number}@example.org")
    barrier = threading.Barrier(3)

    def work() -> None:
        barrier.wait()
        services.deliver_due()
        connection.close()

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(mail.rcpt_tos[0] for mail in postbox.mails) == [f"person{number}@example.org" for number in range(10)]


def test_a_test_mail_tells_what_happened(postbox: Postbox, alice: User, settings: Any) -> None:
    assert services.send_test(alice, alice.email) == (True, "The mail server took the test mail to alice@example.org.")
    left, said = services.send_test(alice, "a@refused.example")
    assert not left
    assert "550 no such mailbox" in said
    settings.SMTP = smtp(f"smtp://hearth:wrong@127.0.0.1:{settings.SMTP['port']}")
    left, said = services.send_test(alice, alice.email)
    assert not left
    assert "535" in said
    assert "wrong" not in said
    settings.SMTP = None
    assert "inbox page" in services.send_test(alice, alice.email)[1]


@pytest.mark.parametrize(
    ("error", "final"),
    [
        (smtplib.SMTPDataError(554, b"spam"), True),
        (smtplib.SMTPDataError(451, b"later"), False),
        (smtplib.SMTPAuthenticationError(535, b"who"), False),
        (TimeoutError(), False),
    ],
)
def test_what_is_final(error: Exception, final: bool) -> None:
    assert transport.is_final(error) is final


def test_pauses_grow_and_end() -> None:
    pauses = [services.pause_after(attempt) for attempt in range(1, 9)]
    assert pauses == sorted(pauses)
    assert (pauses[0], pauses[-1]) == (timedelta(seconds=30), timedelta(hours=6))


def test_mails_are_kept_for_thirty_days(postbox: Postbox) -> None:
    for state in Mail.State:
        for days in (29, 31):
            mail = queue(f"{state}-{days}@example.org")
            Mail.objects.filter(pk=mail.pk).update(state=state, created=timezone.now() - timedelta(days=days))
    assert services.prune(at_once=2) == 2
    assert services.prune() == 1
    assert services.prune() == 0
    kept = set(Mail.objects.values_list("recipient", flat=True))
    assert kept == {f"{state}-29@example.org" for state in Mail.State} | {"queued-31@example.org"}
