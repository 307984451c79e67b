"""What has expired is removed by the clock: sessions, staff links, sign-ups that nobody proved."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import pytest
from django.contrib.sessions.models import Session
from django.test import Client
from django.utils import timezone

from accounts import services
from accounts.models import StaffLink, User
from audit.models import AuditEvent
from config.celery import app
from config.schedule import EVERY
from tests.accounts.browser import Browser
from tests.cast import make_user

pytestmark = pytest.mark.django_db
LONG_AGO = timezone.now() - timedelta(days=30)


def test_old_sessions_go_and_open_ones_stay(alice: User, client_for: Callable[[User], Client]) -> None:
    old, hers = client_for(alice), client_for(alice)
    Session.objects.filter(pk=old.session.session_key).update(expire_date=timezone.now())
    assert services.forget_old() == 1
    assert hers.get("/account/").status_code == 200
    assert old.get("/account/").status_code == 302


def test_a_sign_up_that_nobody_proved_goes_and_its_address_is_free() -> None:
    Browser().sign_up("dora@example.org")
    services.forget_old()
    assert User.objects.filter(email="dora@example.org").exists()
    User.objects.update(date_joined=LONG_AGO)
    services.forget_old()
    assert not User.objects.exists()
    assert AuditEvent.objects.latest("id").verb == "account.forget"
    Browser("192.0.2.1").sign_up("dora@example.org")
    assert User.objects.filter(email="dora@example.org").exists()


def test_people_stay(alice: User, bob: User) -> None:
    # Bob once proved his address, and wants another one now; neither has been here for long.
    bob.emailaddress_set.create(email="robert@example.org")  # type: ignore[attr-defined]
    make_user("sally@example.org", staff=True, verified=False)
    User.objects.update(date_joined=LONG_AGO)
    services.forget_old()
    assert User.objects.count() == 3


def test_expired_staff_links_go() -> None:
    services.make_staff_link()
    services.forget_old()
    assert StaffLink.objects.count() == 1
    StaffLink.objects.update(expires=LONG_AGO)
    services.forget_old()
    assert not StaffLink.objects.exists()


def test_everything_on_the_clock_is_a_task() -> None:
    app.loader.import_default_modules()
    assert set(EVERY) <= set(app.tasks)
