"""What nobody types by accident: forged cookies, hosts and addresses of pages, and fields that are too much."""

from __future__ import annotations

import json
import urllib.parse
from collections.abc import Callable
from typing import Any

import pytest
from allauth.account.models import EmailAddress
from django.test import Client
from django.urls import reverse

from accounts.models import User
from notifications.models import Mail
from tests.accounts.browser import PASSWORD as SIGN_UP_PASSWORD
from tests.accounts.browser import Browser, newest_mail
from tests.cast import PASSWORD, make_user

pytestmark = pytest.mark.django_db
TOO_LONG = [f"{'a' * 60}@{'b' * 60}.{'b' * 60}.{'b' * 60}.{tail}.org" for tail in ("b" * 20, "b" * 60)]
MADE_UP = json.dumps(
    {
        "id": "AA", "rawId": "AA", "type": "public-key", "clientExtensionResults": {},
        "response": {"clientDataJSON": "e30", "authenticatorData": "AA", "signature": "AA", "userHandle": "AA",
                     "attestationObject": "oA"},
    }
)  # fmt: skip
NUL = '"aaaaaaaaaaaaaaaa\\000"'
WEIRD = ("a\x00b", "x" * 1_000_000, "\u202eevil", "👩‍👩‍👧‍👦", "a\r\nBcc: b@example.org", *TOO_LONG, "\ud800")
SIGNED_OUT = ["/account/login/", "/account/signup/", "/account/password/reset/", "/account/confirm-email/again/"]


@pytest.mark.parametrize("name", ["hearth-session", "hearth-csrf", "messages", "hearth-known", "hearth-inbox"])
@pytest.mark.parametrize("value", [NUL, "a" * 4000, "é" * 40, "{}", '"'])
def test_a_broken_cookie_is_no_cookie(name: str, value: str) -> None:
    client = Client(headers={"cookie": f"{name}={value}"})
    for page in ("/", "/account/login/"):
        assert client.get(page).status_code == 200


@pytest.mark.parametrize("page", SIGNED_OUT)
def test_whatever_is_typed_gets_an_answer(page: str) -> None:
    for value in WEIRD:
        raw = urllib.parse.quote(value, errors="surrogatepass")
        for field in ("email", "login", "password", "password1"):
            others = "&".join(f"{name}={SIGN_UP_PASSWORD}" for name in ("password", "password1") if name != field)
            answer = Client().post(page, f"{field}={raw}&{others}", content_type="application/x-www-form-urlencoded")
            assert answer.status_code in {200, 302, 429}


@pytest.mark.parametrize("address", TOO_LONG)
def test_an_address_that_is_too_long_gets_a_sentence(address: str, client_for: Callable[..., Client]) -> None:
    assert "too long" in Browser().open("/account/password/reset/").send(email=address).text
    assert "too long" in Browser().sign_up(address).text
    hers = Browser(client=client_for(make_user("alice@example.org")))
    answer = hers.open("/account/email/").send(email=address, action_add="")
    assert "too long" in answer.text
    assert not Mail.objects.exists()


@pytest.mark.parametrize("credential", ["9" * 5000, "[" * 100_000, "{}", "null", "[]", '{"id": 1}', "\x00", MADE_UP])
def test_a_passkeys_answer_that_is_none(credential: str, alice: User, client_for: Callable[..., Client]) -> None:
    offered = Client().post(reverse("mfa_login_webauthn"), {"credential": credential})
    assert offered.status_code in {200, 302}
    browser = Browser(client=client_for(alice)).open(reverse("mfa_add_webauthn")).send(password=PASSWORD)
    browser.send(credential=credential)
    assert (browser.page.status_code, browser.page.redirect_chain) == (200, [])
    assert not alice.authenticator_set.filter(type="webauthn").exists()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "target",
    [
        "https://evil.example/", "//evil.example/", "http:///evil.example", "/\\evil.example", "javascript:alert(1)",
        "http://localhost/", "http://127.0.0.1/steal", "http://testserver:81/", "\x00//evil.example",
    ],
)  # fmt: skip
def test_signing_in_leads_nowhere_else(target: str) -> None:
    make_user("dora@example.org", factor=False)
    typed = {"login": "dora@example.org", "password": PASSWORD, "next": target}
    assert Client().post("/account/login/", typed)["Location"] == "/account/second-factor/"


def test_signing_in_leads_back_within_this_site() -> None:
    make_user("dora@example.org", factor=False)
    typed = {"login": "dora@example.org", "password": PASSWORD, "next": "/o/acme/?page=2"}
    assert Client().post("/account/login/", typed)["Location"] == "/o/acme/?page=2"


def test_links_in_mails_are_not_made_from_what_a_request_says(settings: Any, alice: User) -> None:
    settings.PUBLIC_URL = "https://hearth.example"
    stranger = Client(HTTP_HOST="localhost:6666")
    stranger.post("/account/signup/", {"email": "dora@example.org", "password1": SIGN_UP_PASSWORD})
    stranger.post("/account/signup/", {"email": alice.email, "password1": SIGN_UP_PASSWORD})
    stranger.post("/account/password/reset/", {"email": alice.email})
    stranger.post("/account/password/reset/", {"email": "nobody@example.org"})
    stranger.post("/account/confirm-email/again/", {"email": "dora@example.org"})
    texts = [mail.text for mail in Mail.objects.all()]
    assert len(texts) == 5
    for text in texts:
        assert "https://hearth.example/" in text
        assert "localhost" not in text
        assert "http://" not in text


def test_a_host_that_is_not_ours_gets_nothing() -> None:
    assert Client(HTTP_HOST="evil.example").get("/account/login/").status_code == 400


def test_a_wish_for_an_address_ends_only_when_its_owner_signs_up(alice: User) -> None:
    EmailAddress.objects.create(user=alice, email="dora@example.org", verified=False)
    Browser().sign_up("dora@example.org", "short")
    assert EmailAddress.objects.filter(user=alice, email="dora@example.org").exists()
    Browser().sign_up("dora@example.org")
    assert User.objects.filter(email="dora@example.org").exists()
    assert "account with it already" not in newest_mail("dora@example.org").text
