"""From the sign-up form to a second factor, by the pages' own forms; and what each step refuses."""

from __future__ import annotations

import base64
import re
import threading
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pyotp
import pytest
from allauth.account.models import EmailAddress
from django.contrib.auth.hashers import get_hasher
from django.db import connection
from django.test import Client

from accounts import limits, timing
from accounts.models import User
from audit.models import AuditEvent
from notifications.models import Mail
from tests.accounts.browser import PASSWORD, Browser, link_in, newest_mail, secret_on

pytestmark = pytest.mark.django_db


def verbs() -> list[str]:
    return list(AuditEvent.objects.filter(verb__startswith="account.").order_by("id").values_list("verb", flat=True))


@pytest.mark.django_db(transaction=True)
def test_it_works() -> None:
    browser = Browser().sign_up("alice@example.org")
    assert browser.path == "/account/confirm-email/"
    browser.open(link_in(newest_mail("alice@example.org"), "confirm-email"))
    assert not EmailAddress.objects.get().verified  # a scanner that follows the link spends nothing
    browser.send(action="/")
    assert browser.path == "/account/second-factor/"
    browser.open("/account/2fa/totp/activate/")
    assert "data:image/svg+xml;base64," in browser.text
    browser.send(code=pyotp.TOTP(secret_on(browser.text)).now())
    assert browser.path == "/account/2fa/recovery-codes/"
    assert len(re.findall(r"^\d{8}$", browser.text.partition('id="recovery_codes">')[2], re.MULTILINE)) >= 9
    assert browser.open("/account/").page.status_code == 200
    assert "Authenticator app" in browser.text
    assert verbs() == [
        "account.sign_up",
        "account.verify_email",
        "account.sign_in",
        "account.add_factor",
        "account.add_factor",
    ]


@pytest.mark.django_db(transaction=True)
def test_the_next_sign_in_asks_for_a_code() -> None:
    browser = Browser().sign_up("alice@example.org")
    browser.open(link_in(newest_mail("alice@example.org"), "confirm-email")).send(action="/")
    secret = browser.add_app()
    other = Browser().sign_in("alice@example.org")
    assert other.path == "/account/2fa/authenticate/"
    other.send(code=pyotp.TOTP(secret).at(datetime.now(UTC) + timedelta(seconds=30)))
    assert AuditEvent.objects.filter(verb="account.sign_in").latest("id").after == {"methods": ["password", "totp"]}
    assert "_auth_user_id" in other.client.session


def test_a_link_opened_elsewhere_verifies_but_signs_nobody_in() -> None:
    Browser().sign_up("alice@example.org")
    elsewhere = Browser().open(link_in(newest_mail("alice@example.org"), "confirm-email")).send(action="/")
    assert EmailAddress.objects.get().verified
    assert elsewhere.path == "/account/login/"
    assert "_auth_user_id" not in elsewhere.client.session


def test_nobody_gets_in_unverified() -> None:
    browser = Browser().sign_up("alice@example.org")
    assert browser.open("/account/").path != "/account/"
    other = Browser().sign_in("alice@example.org")
    assert other.path == "/account/confirm-email/"
    assert "_auth_user_id" not in other.client.session


def test_a_used_link_says_so_and_offers_a_new_one() -> None:
    Browser().sign_up("alice@example.org")
    link = link_in(newest_mail("alice@example.org"), "confirm-email")
    first, second = Browser().open(link), Browser().open(link)
    first.send(action="/")
    second.send(action="/")
    for late in (second, Browser().open(link)):
        assert late.page.status_code == 410
        assert "no longer works" in late.text
        assert "/account/confirm-email/again/" in late.text


def test_an_expired_link_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    Browser().sign_up("alice@example.org")
    link = link_in(newest_mail("alice@example.org"), "confirm-email")
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + 2 * 86400 + 60)
    late = Browser().open(link)
    assert late.page.status_code == 410
    assert not EmailAddress.objects.get().verified


def test_a_new_link_comes_and_nobody_learns_who_has_an_account() -> None:
    Browser().sign_up("alice@example.org")
    known = Browser().open("/account/confirm-email/again/").send(email="alice@example.org")
    unknown = Browser().open("/account/confirm-email/again/").send(email="nobody@example.org")
    assert known.path == unknown.path == "/account/confirm-email/"
    assert Mail.objects.filter(recipient="alice@example.org").count() == 2
    assert not Mail.objects.filter(recipient="nobody@example.org").exists()


def test_a_taken_address_looks_like_a_free_one() -> None:
    Browser().sign_up("alice@example.org")
    free = Browser().sign_up("bob@example.org")
    taken = Browser().sign_up("ALICE@example.org", "another long password")
    assert (taken.page.status_code, taken.path) == (free.page.status_code, free.path)
    strip = re.compile(r"csrfmiddlewaretoken.*?>")
    assert strip.sub("", taken.text) == strip.sub("", free.text)
    assert User.objects.filter(email="alice@example.org").count() == 1
    assert User.objects.get(email="alice@example.org").check_password(PASSWORD)


def test_reset_and_sign_in_do_not_tell_either() -> None:
    Browser().sign_up("alice@example.org")
    answers = []
    for email in ("alice@example.org", "nobody@example.org"):
        reset = Browser().open("/account/password/reset/").send(email=email)
        wrong = Browser().sign_in(email, "a wrong password")
        answers.append(
            (reset.path, reset.page.status_code, wrong.page.status_code, "do not belong together" in wrong.text)
        )
    assert answers[0] == answers[1]
    assert answers[0][-1]


@pytest.mark.parametrize("password", ["short", "password123", "alice@example.org"])
def test_weak_passwords_are_refused(password: str) -> None:
    browser = Browser().sign_up("alice@example.org", password)
    assert browser.path == "/account/signup/"
    assert "errorlist" in browser.text
    assert not User.objects.exists()


def test_a_failure_leaves_nothing_half_made(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("the disk is full")

    monkeypatch.setattr("accounts.trail.signed_up", broken)
    with pytest.raises(RuntimeError, match="disk"):
        Browser().sign_up("alice@example.org")
    assert not User.objects.exists()
    assert not Mail.objects.exists()


def test_a_flood_from_one_address_gets_429(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SIGN_UP_ADDRESS", limits.Limit("a", 2, 3600))
    answers = [Browser("192.0.2.7").sign_up(f"a{n}@example.org").page for n in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert 0 < int(answers[2]["Retry-After"]) <= 3600
    assert "Too many" in answers[2].content.decode()
    assert Browser("192.0.2.8").sign_up("b@example.org").page.status_code == 200


@pytest.mark.parametrize(
    ("same", "other"),
    [
        (["198.51.100.1", "198.51.100.200"], "198.51.101.1"),
        (["2001:db8:0:a00::1", "2001:db8:0:aff::9"], "2001:db8:0:b00::1"),
    ],
)
def test_a_flood_from_one_network_gets_429(monkeypatch: pytest.MonkeyPatch, same: list[str], other: str) -> None:
    monkeypatch.setattr(limits, "SIGN_UP_NETWORK", limits.Limit("n", 1, 3600))
    answers = [Browser(address).sign_up(f"a{n}@example.org").page.status_code for n, address in enumerate(same)]
    assert answers == [200, 429]
    assert Browser(other).sign_up("b@example.org").page.status_code == 200


def test_guessing_a_password_is_stopped_and_noted(alice: User) -> None:
    pages = [Browser(f"192.0.2.{n}").sign_in(alice.email, "wrong guess").text for n in range(1, 8)]
    assert "Too many failed attempts" in pages[-1]
    failed = AuditEvent.objects.filter(verb="account.sign_in_failed", object_id=str(alice.pk))
    assert 0 < failed.count() <= 5
    Browser().sign_in("nobody@example.org", "wrong guess")
    assert AuditEvent.objects.filter(verb="account.sign_in_failed").count() == failed.count()


def test_a_stale_form_gets_a_clear_page() -> None:
    browser = Browser().open("/account/login/")
    browser.client.cookies.clear()
    browser.send(login="alice@example.org", password=PASSWORD)
    assert browser.page.status_code == 403
    assert "expired" in browser.text
    assert Client().get("/account/login/").status_code == 200


@pytest.mark.django_db(transaction=True)
def test_secrets_are_not_plain_in_the_database() -> None:
    browser = Browser().sign_up("alice@example.org")
    mail = newest_mail("alice@example.org")
    key = link_in(mail, "confirm-email").split("/")[-2]
    browser.open(link_in(mail, "confirm-email")).send(action="/")
    browser.open("/account/2fa/totp/activate/")
    pending = secret_on(browser.text)
    assert pending in str(browser.client.session.items())
    everything = dump()
    assert pending not in everything
    assert key not in everything
    browser.send(code=pyotp.TOTP(pending).now())
    codes = re.findall(r"^\d{8}$", browser.text, re.MULTILINE)
    everything = dump()
    assert not [secret for secret in [pending, PASSWORD, *codes] if secret in everything]


def dump() -> str:
    """Return every row of every table as text, bytes and base64 resolved."""
    parts = []
    with connection.cursor() as cursor:
        for table in connection.introspection.table_names(cursor):
            cursor.execute(f'select * from "{table}"')  # noqa: S608 (names from the catalogue)
            for row in cursor.fetchall():
                for value in row:
                    raw = bytes(value) if isinstance(value, memoryview) else str(value).encode()
                    parts.append(raw.decode("latin-1"))
                    try:
                        parts.append(base64.b64decode(raw.split(b":")[0] + b"==", validate=False).decode("latin-1"))
                    except ValueError:
                        continue
    return "\n".join(parts)


@pytest.mark.django_db(transaction=True)
def test_secrets_are_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    browser = Browser().sign_up("alice@example.org")
    link = link_in(newest_mail("alice@example.org"), "confirm-email")
    browser.open(link).send(action="/")
    secret = browser.add_app()
    logged = "\n".join(record.getMessage() for record in caplog.records if not record.name.startswith("django.db"))
    assert not [part for part in (PASSWORD, secret, link) if part in logged]


@pytest.mark.django_db(transaction=True)
def test_the_same_address_sent_twice_at_once_makes_one_account() -> None:
    browsers = [Browser("192.0.2.1").open("/account/signup/"), Browser("192.0.2.2").open("/account/signup/")]
    barrier = threading.Barrier(2)

    def send(browser: Browser) -> None:
        barrier.wait()
        browser.send(email="alice@example.org", password1=PASSWORD)
        connection.close()

    threads = [threading.Thread(target=send, args=[browser]) for browser in browsers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [browser.path for browser in browsers] == ["/account/confirm-email/"] * 2
    assert User.objects.count() == 1


def test_too_many_tries_to_sign_in_from_one_address_get_429() -> None:
    client = Client(REMOTE_ADDR="192.0.2.9")
    answers = [client.post("/account/login/", {"login": f"p{n}@example.org", "password": "x"}) for n in range(31)]
    assert answers[-1].status_code == 429
    assert int(answers[-1]["Retry-After"]) > 0
    assert "Too many" in answers[-1].content.decode()


def test_without_the_demand_a_second_factor_is_each_persons_choice(settings: Any) -> None:
    settings.HEARTH = {**settings.HEARTH, "HEARTH_REQUIRE_MFA": False}
    browser = Browser().sign_up("alice@example.org")
    browser.open(link_in(newest_mail("alice@example.org"), "confirm-email")).send(action="/")
    assert browser.open("/organisations/new/").path == "/organisations/new/"


@pytest.mark.parametrize("page", ["/account/confirm-email/again/", "/account/password/reset/"])
def test_time_does_not_tell_who_has_an_account(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "LEAST_S", 0.5)
    Browser().sign_up("alice@example.org")
    for email in ("alice@example.org", "nobody@example.org"):
        began = time.monotonic()
        assert Client().post(page, {"email": email}).status_code == 302
        assert time.monotonic() - began >= 0.5


def test_a_taken_address_costs_as_many_hashes_as_a_free_one(monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[str] = []
    hasher = type(get_hasher())
    encode = hasher.encode

    def counted(self: Any, *args: Any) -> str:
        hashed.append("")
        return str(encode(self, *args))

    monkeypatch.setattr(hasher, "encode", counted)
    counts = []
    for _ in range(2):
        Browser().sign_up("alice@example.org")
        counts.append(len(hashed))
    assert counts == [1, 2]
    for email in ("alice@example.org", "nobody@example.org"):
        Browser().sign_in(email, "a wrong password")
        counts.append(len(hashed))
    assert counts == [1, 2, 3, 4]
