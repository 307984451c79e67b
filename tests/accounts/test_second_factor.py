"""Second factors: what is refused, what is asked again, and that a password alone never takes one away."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

import pyotp
import pytest
from allauth.mfa.models import Authenticator
from django.core.cache import cache
from django.test import Client

from accounts.models import User
from audit.models import AuditEvent
from tests.accounts.browser import Browser, secret_on
from tests.cast import PASSWORD, TOTP_SECRET, make_user

pytestmark = pytest.mark.django_db


def code(offset: int = 0) -> str:
    """Return the code of this moment, or of so many periods later; never just before the period ends."""
    if (left := 30 - time.time() % 30) < 3:
        time.sleep(left)
    return pyotp.TOTP(TOTP_SECRET).at(int(time.time()) + 30 * offset)


def signed_in(browser: Browser) -> bool:
    return "_auth_user_id" in browser.client.session


def test_a_code_signs_in(alice: User) -> None:
    browser = Browser().sign_in(alice.email)
    assert not signed_in(browser)
    assert signed_in(browser.send(code=code()))


def test_a_wrong_code_is_refused_and_noted(alice: User) -> None:
    wrong = "000000" if code() != "000000" else "111111"
    browser = Browser().sign_in(alice.email).send(code=wrong)
    assert not signed_in(browser)
    assert "not right" in browser.text
    assert AuditEvent.objects.get(verb="account.sign_in_failed").after == {"step": "second factor"}


def test_a_code_works_once(alice: User) -> None:
    used = code()
    assert signed_in(Browser().sign_in(alice.email).send(code=used))
    again = Browser().sign_in(alice.email).send(code=used)
    assert not signed_in(again)
    assert "used already" in again.text or "not right" in again.text


@pytest.mark.parametrize("offset", [-1, 1])
def test_a_used_code_stays_used_for_as_long_as_it_could_work(
    alice: User, offset: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = code(offset)
    assert signed_in(Browser().sign_in(alice.email).send(code=used))
    # allauth itself forgets after one period.
    cache.delete(f"allauth.mfa.totp.used?user={alice.pk}&code={used}")
    assert not signed_in(Browser().sign_in(alice.email).send(code=used))


def test_an_expired_code_is_refused(alice: User) -> None:
    assert not signed_in(Browser().sign_in(alice.email).send(code=code(-3)))


def test_guessing_codes_is_stopped(alice: User) -> None:
    browser = Browser().sign_in(alice.email)
    for guess in range(6):
        browser.send(code=f"{guess:06d}")
    assert "Too many failed attempts" in browser.text
    assert not signed_in(browser.send(code=code()))


@pytest.mark.django_db(transaction=True)
def test_the_code_that_added_the_app_is_spent() -> None:
    person = make_user("dora@example.org", factor=False)
    browser = Browser().sign_in(person.email)
    assert browser.path == "/account/second-factor/"
    spent = pyotp.TOTP(secret_on(browser.open("/account/2fa/totp/activate/").text)).now()
    browser.send(code=spent)
    assert browser.path == "/account/2fa/recovery-codes/"
    assert not signed_in(Browser().sign_in(person.email).send(code=spent))


def test_a_wrong_first_code_adds_no_app() -> None:
    person = make_user("dora@example.org", factor=False)
    browser = Browser().sign_in(person.email).open("/account/2fa/totp/activate/").send(code="12345")
    assert "not right" in browser.text
    assert not Authenticator.objects.filter(user=person).exists()


@pytest.mark.django_db(transaction=True)
def test_a_recovery_code_works_once() -> None:
    person = make_user("dora@example.org", factor=False)
    browser = Browser().sign_in(person.email)
    browser.add_app()
    spare = re.findall(r"\b\d{8}\b", browser.text)[0]
    assert signed_in(Browser().sign_in(person.email).send(code=spare))
    assert not signed_in(Browser().sign_in(person.email).send(code=spare))


def test_without_a_factor_the_members_area_is_shut(client_for: Callable[..., Client]) -> None:
    person = make_user("dora@example.org", factor=False)
    answer = client_for(person, factor=False).get("/organisations/new/")
    assert answer["Location"] == "/account/second-factor/"


def test_a_session_from_before_the_factor_proves_it(alice: User, client_for: Callable[..., Client]) -> None:
    old = client_for(alice, factor=False)
    answer = old.get("/organisations/new/")
    assert answer["Location"] == "/account/2fa/reauthenticate/?next=%2Forganisations%2Fnew%2F"
    browser = Browser(client=old).open("/organisations/new/").send(code=code())
    assert browser.path == "/organisations/new/"


def test_a_password_alone_does_not_take_a_factor_away(alice: User, client_for: Callable[..., Client]) -> None:
    old = Browser(client=client_for(alice, factor=False)).open("/account/2fa/totp/deactivate/")
    assert old.path == "/account/2fa/reauthenticate/"
    assert "/account/reauthenticate/" not in old.text
    assert (
        old.open("/account/reauthenticate/?next=/account/2fa/totp/deactivate/").path == "/account/2fa/reauthenticate/"
    )


@pytest.mark.django_db(transaction=True)
def test_removing_the_app_is_noted_and_mailed(alice: User, client_for: Callable[..., Client]) -> None:
    browser = Browser(client=client_for(alice)).open("/account/2fa/totp/deactivate/").send(password=PASSWORD)
    assert browser.path == "/account/2fa/totp/deactivate/"
    browser.send(action="/deactivate/")
    assert not Authenticator.objects.filter(user=alice).exists()
    assert AuditEvent.objects.filter(verb="account.remove_factor", object_id=str(alice.pk)).exists()
    assert browser.open("/organisations/new/").path == "/account/second-factor/"


def test_an_unverified_address_sees_no_members_page(client_for: Callable[..., Client]) -> None:
    person = make_user("dora@example.org", verified=False)
    answer = client_for(person).get("/organisations/new/")
    assert answer.status_code == 403
    assert "Verify your e-mail address" in answer.content.decode()


def test_a_stranger_is_sent_to_sign_in() -> None:
    assert Client().get("/organisations/new/")["Location"] == "/account/login/?next=/organisations/new/"


def test_the_passkey_pages_carry_what_the_browser_needs(alice: User, client_for: Callable[..., Client]) -> None:
    browser = Browser(client=client_for(alice)).open("/account/2fa/webauthn/add/").send(password=PASSWORD)
    assert browser.path == "/account/2fa/webauthn/add/"
    assert '"rp": {"name": "Hearth", "id": "testserver"}' in browser.text
    offered = Client().get("/account/2fa/webauthn/login/", headers={"accept": "application/json"}).json()
    assert offered["request_options"]["publicKey"]["challenge"]
