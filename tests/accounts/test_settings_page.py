"""What a person changes about their own account."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from allauth.account.models import EmailAddress
from django.test import Client

from accounts.models import User
from audit.models import AuditEvent
from tests.accounts.browser import PASSWORD, Browser, link_in, newest_mail
from tests.cast import client_for as sign_in
from tests.cast import make_user

pytestmark = pytest.mark.django_db
NEW = "a quite different secret"


@pytest.fixture
def browser(alice: User, client_for: Callable[..., Client]) -> Browser:
    return Browser(client=client_for(alice))


def test_it_works(browser: Browser, alice: User) -> None:
    browser.open("/account/").send(name="Alice Liddell")
    alice.refresh_from_db()
    assert alice.name == "Alice Liddell"
    assert AuditEvent.objects.get(verb="account.rename").after == {"name": "Alice Liddell"}


def test_the_password_changes_and_the_old_one_ends(browser: Browser, alice: User) -> None:
    browser.open("/account/password/change/").send(oldpassword=PASSWORD, password1=NEW)
    assert browser.path == "/account/"
    alice.refresh_from_db()
    assert alice.check_password(NEW)
    assert AuditEvent.objects.filter(verb="account.change_password").exists()
    assert newest_mail(alice.email).subject == "Your password was changed"


def test_a_wrong_present_password_changes_nothing(browser: Browser, alice: User) -> None:
    browser.open("/account/password/change/").send(oldpassword="not mine", password1=NEW)
    assert "not your present password" in browser.text
    alice.refresh_from_db()
    assert alice.check_password(PASSWORD)


def test_a_forgotten_password_is_set_by_a_link_that_works_once(alice: User) -> None:
    Browser().open("/account/password/reset/").send(email=alice.email)
    link = link_in(newest_mail(alice.email), "/password/reset/key/")
    browser = Browser().open(link).send(password1=NEW)
    assert browser.path == "/account/password/reset/key/done/"
    alice.refresh_from_db()
    assert alice.check_password(NEW)
    assert "no longer works" in Browser().open(link).text


def test_a_new_address_counts_once_its_link_was_opened(browser: Browser, alice: User) -> None:
    browser.open("/account/email/").send(email="liddell@example.org", action_add="1").send(password=PASSWORD)
    alice.refresh_from_db()
    assert alice.email == "alice@example.org"
    browser.open(link_in(newest_mail("liddell@example.org"), "confirm-email")).send(action="/")
    alice.refresh_from_db()
    assert alice.email == "liddell@example.org"
    assert AuditEvent.objects.filter(verb="account.change_email").exists()
    assert newest_mail("alice@example.org").subject == "Your e-mail address was changed"


def test_an_address_that_somebody_else_took_meanwhile(browser: Browser, alice: User) -> None:
    browser.open("/account/email/").send(email="liddell@example.org", action_add="1").send(password=PASSWORD)
    link = link_in(newest_mail("liddell@example.org"), "confirm-email")
    make_user("liddell@example.org", verified=False, factor=False)
    browser.open(link).send(action="/")
    assert browser.page.status_code == 409
    assert "can't be confirmed" in browser.text.replace("&#x27;", "'")
    alice.refresh_from_db()
    assert alice.email == "alice@example.org"


def test_an_address_that_is_only_wished_for_gives_no_power(alice: User) -> None:
    EmailAddress.objects.create(user=alice, email="charlie@example.org", verified=False)
    Browser().open("/account/password/reset/").send(email="charlie@example.org")
    assert "There is no account" in newest_mail("charlie@example.org").subject
    Browser().sign_up("charlie@example.org")
    assert User.objects.filter(email="charlie@example.org").exists()


def test_the_page_costs_the_same_with_many_passkeys(
    browser: Browser, alice: User, django_assert_max_num_queries: Callable[[int], object]
) -> None:
    with django_assert_max_num_queries(12):  # type: ignore[attr-defined]
        browser.open("/account/")


def test_signing_out_takes_a_form(browser: Browser) -> None:
    assert "_auth_user_id" in browser.open("/account/logout/").client.session
    browser.send(action="/account/logout/")
    assert "_auth_user_id" not in browser.client.session


def test_a_link_for_a_new_password_expires(alice: User, settings: Any) -> None:
    Browser().open("/account/password/reset/").send(email=alice.email)
    link = link_in(newest_mail(alice.email), "password/reset")
    settings.PASSWORD_RESET_TIMEOUT = -1
    late = Browser().open(link)
    assert "no longer works" in late.text
    assert "password1" not in late.text


def test_a_new_password_ends_other_sessions(browser: Browser, alice: User) -> None:
    other = sign_in(alice)
    assert other.get("/account/").status_code == 200
    browser.open("/account/password/change/").send(oldpassword=PASSWORD, password1="another good passphrase")
    assert other.get("/account/").status_code == 302
    assert browser.open("/account/").page.status_code == 200
