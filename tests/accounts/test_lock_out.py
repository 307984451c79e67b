"""Limits on guessing hold, and can't be used against the person whose password is guessed."""

from __future__ import annotations

import pytest
from django.test import Client

from accounts import known
from accounts.models import User
from notifications.models import Mail
from tests.accounts.browser import PASSWORD, Browser, link_in, newest_mail
from tests.accounts.test_second_factor import code, signed_in

pytestmark = pytest.mark.django_db
LIMIT = "Too many failed attempts"


def guess(email: str, *, times: int = 6, network: str = "192.0.2", host: str = "testserver") -> str:
    """Guess from many machines; return the last page."""
    page = ""
    for number in range(times):
        client = Client(REMOTE_ADDR=f"{network}.{number}", HTTP_HOST=host)
        page = client.post("/account/login/", {"login": email, "password": f"guess number {number}"}).content.decode()
    return page


def test_guesses_from_elsewhere_do_not_lock_out_a_browser_that_was_here(alice: User) -> None:
    hers = Browser("198.51.100.1").sign_in(alice.email)
    assert signed_in(hers.send(code=code()))
    hers.client.logout()
    hers.client.cookies[known.COOKIE] = kept(hers)
    assert LIMIT in guess(alice.email)
    assert LIMIT in Browser("198.51.100.2").sign_in(alice.email).text
    assert hers.sign_in(alice.email).path == "/account/2fa/authenticate/"


def kept(browser: Browser) -> str:
    """Return the mark; Django's test client forgets every cookie when it signs out, a browser does not."""
    fresh = Browser("198.51.100.1").sign_in("alice@example.org")
    fresh.send(code=code(1))
    assert browser is not fresh
    return fresh.client.cookies[known.COOKIE].value


def test_a_browser_that_was_here_can_not_guess_for_ever(alice: User) -> None:
    browser = Browser("198.51.100.1").sign_in(alice.email)
    browser.send(code=code())
    mark = browser.client.cookies[known.COOKIE].value
    pages = []
    for number in range(6):
        client = Client(REMOTE_ADDR=f"203.0.113.{number}")
        client.cookies[known.COOKIE] = mark
        answer = client.post("/account/login/", {"login": alice.email, "password": f"guess number {number}"})
        pages.append(answer.content.decode())
    assert LIMIT in pages[-1]
    assert LIMIT not in pages[0]


def test_the_mark_of_one_account_says_nothing_of_another(alice: User, bob: User) -> None:
    browser = Browser("198.51.100.1").sign_in(bob.email)
    browser.send(code=code())
    assert known.COOKIE in browser.client.cookies
    guess(alice.email)
    client = Client(REMOTE_ADDR="198.51.100.1")
    client.cookies[known.COOKIE] = browser.client.cookies[known.COOKIE].value
    answer = client.post("/account/login/", {"login": alice.email, "password": PASSWORD})
    assert LIMIT in answer.content.decode()


def test_the_mark_is_for_the_server_alone(alice: User) -> None:
    browser = Browser().sign_in(alice.email)
    browser.send(code=code())
    cookie = browser.client.cookies[known.COOKIE]
    assert (cookie["httponly"], cookie["samesite"], cookie["path"]) == (True, "Lax", "/account/")
    assert alice.email not in cookie.value


def test_another_port_in_the_host_header_gives_no_new_tries(alice: User) -> None:
    pages = [guess(alice.email, times=1, network=f"192.0.{port}", host=f"localhost:{port}") for port in range(1, 7)]
    assert LIMIT in pages[-1]


def test_forwarded_addresses_that_nobody_vouches_for_give_no_new_tries() -> None:
    answers = [
        Client(REMOTE_ADDR="192.0.2.9", HTTP_X_FORWARDED_FOR=f"203.0.113.{number}").post(
            "/account/login/", {"login": f"p{number}@example.org", "password": "x"}
        )
        for number in range(31)
    ]
    assert answers[-1].status_code == 429


def test_a_new_password_by_mail_opens_the_door_again(alice: User) -> None:
    guess(alice.email)
    browser = Browser("198.51.100.1").open("/account/password/reset/").send(email=alice.email)
    browser.open(link_in(newest_mail(alice.email), "password/reset")).send(password1="another good passphrase")
    assert browser.sign_in(alice.email, "another good passphrase").path == "/account/2fa/authenticate/"


@pytest.mark.parametrize("email", ["alice@example.org", "nobody@example.org"])
def test_nobodys_mailbox_is_flooded(alice: User, email: str) -> None:
    for number in range(6):
        Browser(f"192.0.2.{number}").open("/account/password/reset/").send(email=email)
        Browser(f"192.0.2.{number}").open("/account/confirm-email/again/").send(email=email)
        Browser(f"192.0.2.{number}").sign_up(email)
    assert Mail.objects.filter(recipient=email).count() <= 8
