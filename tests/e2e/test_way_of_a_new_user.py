"""From sign-up to a message through a homeserver, in a real browser; then a real Matrix client."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pyotp
import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect

from tests.stack import Stack
from tests.way import PASSWORD, Connection, talk

pytestmark = [pytest.mark.xdist_group("e2e"), pytest.mark.timeout(300)]
SLOW = 90_000
"""Milliseconds: a server on a busy machine."""


@pytest.fixture
def context(chromium: Browser) -> Iterator[BrowserContext]:
    context = chromium.new_context(permissions=["clipboard-read", "clipboard-write"])
    yield context
    context.close()


@pytest.fixture
def page(context: BrowserContext) -> Iterator[Page]:
    """A page that must run without an error in its console (a refused script or style is one)."""
    page = context.new_page()
    faults: list[str] = []
    page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: faults.append(str(error)))
    yield page
    assert not faults


def sign_up(page: Page, hearth: Stack, email: str) -> None:
    """Sign up and open the mailed link in the same browser."""
    page.goto(hearth.url)
    page.get_by_role("link", name="Sign up").first.click()
    page.get_by_label("E-mail address").fill(email)
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Sign up").click()
    expect(page.get_by_role("heading", name="Open the link in your mail")).to_be_visible()
    page.goto(hearth.link("/inbox/"))
    page.get_by_role("row", name=email).get_by_role("link").first.click()
    page.get_by_role("link", name="/account/confirm-email/").click()
    page.get_by_role("button", name="Yes, confirm this address").click()
    expect(page.get_by_role("heading", name="Protect your account")).to_be_visible()


def add_authenticator_app(page: Page) -> pyotp.TOTP:
    """Add an authenticator app with the key behind “Can't scan it?”, and keep the recovery codes."""
    expect(page.get_by_alt_text("QR code for your authenticator app")).to_be_visible()
    page.get_by_text("Can't scan it?").click()
    code = pyotp.TOTP(page.locator("#authenticator_secret").inner_text())
    page.get_by_label("Code from the app").fill(code.now())
    page.get_by_role("button", name="Add the app").click()
    expect(page.get_by_role("heading", name="Keep your recovery codes")).to_be_visible()
    assert len(page.locator("#recovery_codes").inner_text().split()) >= 8
    page.get_by_role("link", name="I have kept them, go on").click()
    return code


def add_virtual_authenticator(page: Page) -> None:
    """Give the browser a passkey device that says yes to everything."""
    devtools = page.context.new_cdp_session(page)
    devtools.send("WebAuthn.enable")
    options = {
        "protocol": "ctap2",
        "transport": "internal",
        "hasResidentKey": True,
        "hasUserVerification": True,
        "isUserVerified": True,
        "automaticPresenceSimulation": True,
    }
    devtools.send("WebAuthn.addVirtualAuthenticator", {"options": options})


def copied(page: Page, button: str) -> str:
    """Press a copy button and return what is on the clipboard then."""
    page.get_by_role("button", name=button).click()
    return str(page.evaluate("navigator.clipboard.readText()"))


def test_from_sign_up_to_a_message(hearth: Stack, page: Page) -> None:
    sign_up(page, hearth, "alice@example.org")
    page.get_by_role("link", name="Use an app").click()
    add_authenticator_app(page)

    expect(page.get_by_role("heading", name="New organisation")).to_be_visible()
    page.get_by_label("Name of the organisation").fill("Alice & Söhne")
    page.get_by_role("radio", name="Hearth").check()
    page.get_by_role("button", name="Create organisation").click()
    expect(page.get_by_text("Alice & Söhne is ready. Create its first server.")).to_be_visible()
    page.get_by_label("Name", exact=True).fill("alice")
    expect(page.locator("[data-preview=server-name]")).to_have_text("alice.hearth.localhost")
    expect(page.get_by_text("It can never change.")).to_be_visible()
    page.get_by_role("button", name="Create server").click()

    expect(page.get_by_role("heading", name="alice")).to_be_visible()
    page.reload()  # the steps are rows of the database: a reload loses nothing
    expect(page.get_by_text("Ready", exact=True)).to_be_visible(timeout=SLOW)
    assert copied(page, "Copy the user name") == "@admin:alice.hearth.localhost"
    url = page.locator("#homeserver-url").inner_text()
    page.get_by_role("button", name="Show it once").click()
    password = page.locator("#admin-password").inner_text()
    assert copied(page, "Copy the password") == password
    page.get_by_role("link", name="I have it").click()
    expect(page.get_by_text("Shown already; Hearth keeps no copy.")).to_be_visible()

    talk(Connection(url, "@admin:alice.hearth.localhost", password))


def test_a_passkey_is_the_second_factor_and_signs_in_alone(hearth: Stack, page: Page) -> None:
    add_virtual_authenticator(page)
    sign_up(page, hearth, "bob@example.org")
    page.get_by_role("link", name="Use a passkey").click()
    page.get_by_label("Name").fill("laptop")
    page.get_by_role("button", name="Add a passkey").click()
    expect(page.get_by_role("heading", name="Keep your recovery codes")).to_be_visible()
    page.get_by_role("link", name="I have kept them, go on").click()
    expect(page.get_by_role("heading", name="New organisation")).to_be_visible()

    page.context.clear_cookies()
    page.goto(f"{hearth.url}/account/login/")
    page.get_by_role("button", name=re.compile("passkey", re.IGNORECASE)).click()
    expect(page.get_by_role("heading", name="New organisation")).to_be_visible()


def test_the_first_of_the_staff_comes_by_the_printed_link(hearth: Stack, page: Page) -> None:
    link = hearth.link("/staff/claim/")
    page.goto(link)
    page.get_by_label("E-mail address").fill("staff@example.org")
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button").last.click()
    page.goto(f"{hearth.url}/admin/")
    expect(page.get_by_role("heading", name="Add an authenticator app")).to_be_visible()
    add_authenticator_app(page)
    page.goto(f"{hearth.url}/admin/")
    for section in ("Organisations", "People", "Servers", "Operations", "Subscriptions"):
        expect(page.get_by_role("link", name=section).first).to_be_visible()

    page.context.clear_cookies()
    again = page.request.get(link)
    assert (again.status, "used already" in again.text()) == (410, True)
