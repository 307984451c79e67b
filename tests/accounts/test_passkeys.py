"""Passkeys in a real browser with a virtual authenticator: added as the second factor, then used to sign in."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from allauth.mfa.models import Authenticator
from playwright.sync_api import Page, sync_playwright
from pytest_django.live_server_helper import LiveServer

from audit.models import AuditEvent
from tests.cast import PASSWORD, make_user
from tests.left_out import need_chromium

EMAIL = "dora@example.org"
QUIET = ["--no-sandbox", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
AUTHENTICATOR = {
    "protocol": "ctap2",
    "transport": "internal",
    "hasResidentKey": True,
    "hasUserVerification": True,
    "isUserVerified": True,
    "automaticPresenceSimulation": True,
}


@pytest.mark.django_db(transaction=True)
def test_a_passkey_is_a_second_factor_and_signs_in_alone(live_server: LiveServer) -> None:
    chromium = need_chromium()
    person = make_user(EMAIL, factor=False)
    # Playwright keeps an event loop in its thread, where Django's database calls are refused.
    with ThreadPoolExecutor(1) as threads:
        complaints = threads.submit(walk, live_server.url, chromium).result(120)
    assert complaints == []
    assert Authenticator.objects.filter(user=person, type="webauthn").count() == 1
    ways = [event.after["methods"] for event in AuditEvent.objects.filter(verb="account.sign_in").order_by("id")]
    assert ways == [["password"], ["webauthn"], ["password", "webauthn"]]


def walk(url: str, chromium: str) -> list[str]:
    """Add a passkey, sign in with it alone, then after the password; return what the console complained of."""
    complaints: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=QUIET)
        page = browser.new_context(base_url=url).new_page()
        page.on("console", lambda line: complaints.append(line.text) if line.type in {"error", "warning"} else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        devtools = page.context.new_cdp_session(page)
        devtools.send("WebAuthn.enable")
        devtools.send("WebAuthn.addVirtualAuthenticator", {"options": AUTHENTICATOR})
        add(page)
        sign_out(page)
        page.click("#passkey_login")
        page.wait_for_url("**/organisations/new/")
        sign_out(page)
        type_password(page)
        page.wait_for_url("**/account/2fa/authenticate/")
        page.click("#mfa_webauthn_authenticate")
        page.wait_for_url("**/organisations/new/")
        browser.close()
    return complaints


def add(page: Page) -> None:
    page.goto("/account/login/")
    type_password(page)
    page.wait_for_url("**/account/second-factor/")
    page.click("text=Use a passkey")
    page.click("#mfa_webauthn_add")
    page.wait_for_url("**/account/2fa/recovery-codes/")


def type_password(page: Page) -> None:
    page.fill("[name=login]", EMAIL)
    page.fill("[name=password]", PASSWORD)
    page.click("form[action='/account/login/'] button")


def sign_out(page: Page) -> None:
    page.goto("/account/logout/")
    page.click("main form[action='/account/logout/'] button")
    page.wait_for_url("**/account/login/")
