"""Staff are told about overdue keys by mail: once a day, and never anybody else."""

from __future__ import annotations

import logging
import uuid
from datetime import timedelta

import pytest
from django.utils import timezone

from accounts import alerts
from accounts.models import User
from notifications.models import Mail
from security import tasks
from security.errors import HsmError
from security.keyring import keks
from security.models import RootKey
from tests.cast import make_user
from tests.together import at_once

pytestmark = pytest.mark.django_db


@pytest.fixture
def sally(db: None) -> User:
    """Sally runs this Hearth."""
    return make_user("sally@example.org", staff=True)


def make_late() -> None:
    keks.ensure_kek(uuid.uuid4())
    RootKey.objects.update(rotate_after=timezone.now() - timedelta(days=2))


def test_it_works(sally: User, alice: User, caplog: pytest.LogCaptureFixture) -> None:
    make_user("unproved@example.org", staff=True, verified=False)
    left = make_user("left@example.org", staff=True)
    User.objects.filter(pk=left.pk).update(is_active=False)
    tasks.rotate_due()
    assert not Mail.objects.exists(), "nothing is late"
    make_late()
    with caplog.at_level(logging.WARNING):
        tasks.rotate_due()
        tasks.rotate_due()
    mail = Mail.objects.get()
    assert (mail.recipient, mail.subject) == (sally.email, alerts.KEYS_OVERDUE)
    assert f"The root key {RootKey.objects.get().pk} was to be replaced by" in mail.text
    assert "manage.py keys rotate-root" in mail.text
    assert "http://localhost:8000/admin/security/keyencryptionkey/" in mail.text
    assert "Keys overdue: 1. The root key" in caplog.text


def test_it_is_said_again_the_next_day(sally: User) -> None:
    alerts.keys_overdue(["One."])
    Mail.objects.update(created=timezone.now() - timedelta(days=1, minutes=1))
    alerts.keys_overdue(["One."])
    assert Mail.objects.count() == 2


def test_a_thousand_late_keys_make_a_mail_that_people_read(sally: User) -> None:
    alerts.keys_overdue([f"Key {number} is late." for number in range(1000)])
    text = Mail.objects.get().text
    assert "Key 19 is late." in text
    assert "Key 20 is late." not in text
    assert "And 980 more." in text


def test_a_root_key_that_is_away_seals_no_mail(
    sally: User, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def away(**_: object) -> Mail:
        raise HsmError("The HSM does not answer.")

    monkeypatch.setattr(alerts, "queue_mail", away)
    alerts.keys_overdue(["One."])
    assert "Staff could not be mailed (Hearth: keys are past their rotation): The HSM does not answer." in caplog.text
    monkeypatch.undo()
    alerts.keys_overdue(["One."])
    assert Mail.objects.count() == 1


@pytest.mark.django_db(transaction=True)
def test_two_workers_at_once_send_one_mail(sally: User) -> None:
    at_once([lambda: alerts.keys_overdue(["One."])] * 3)
    assert Mail.objects.count() == 1
