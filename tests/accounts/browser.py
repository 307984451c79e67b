"""A browser without scripts on Django's test client: it opens pages and sends their own forms, CSRF tokens and all."""

from __future__ import annotations

import re
from typing import Any

import pyotp
from django.test import Client

from notifications.models import Mail
from tests.forms import forms

PASSWORD = "correct horse battery"


class Browser:
    """One person's browser: its cookies, and the page that it shows."""

    def __init__(self, address: str = "127.0.0.1", client: Client | None = None) -> None:
        self.client = client or Client(enforce_csrf_checks=True)
        self.client.defaults["REMOTE_ADDR"] = address
        self.page: Any = None

    @property
    def text(self) -> str:
        return str(self.page.content.decode())

    @property
    def path(self) -> str:
        return str(self.page.request["PATH_INFO"])

    def open(self, path: str, **more: Any) -> Browser:
        """Open a page and follow redirects."""
        self.page = self.client.get(path, follow=True, **more)
        return self

    def send(self, action: str = "", **typed: str) -> Browser:
        """Send the page's form whose action ends with `action`, or the first that has all typed fields."""
        for form in forms(self.text):
            fits = form.action.endswith(action) if action else set(typed) - {"action_add"} <= form.names
            if form.method == "post" and fits:
                self.page = self.client.post(form.action or self.path, {**form.fields, **typed}, follow=True)
                return self
        raise AssertionError(f"{self.path} has no form for {action or sorted(typed)}:\n{self.text}")

    def sign_up(self, email: str, password: str = PASSWORD) -> Browser:
        return self.open("/account/signup/").send(email=email, password1=password)

    def sign_in(self, email: str, password: str = PASSWORD) -> Browser:
        return self.open("/account/login/").send(login=email, password=password)

    def add_app(self) -> str:
        """Add an authenticator app and return its secret."""
        self.open("/account/2fa/totp/activate/")
        secret = secret_on(self.text)
        self.send(code=pyotp.TOTP(secret).now())
        return secret


def secret_on(page: str) -> str:
    """Return the key that the page with the QR code shows."""
    found = re.search(r'id="authenticator_secret">([A-Z2-7]+)<', page)
    assert found, page
    return found[1]


def newest_mail(email: str) -> Mail:
    """Return the last mail to somebody."""
    mail = Mail.objects.filter(recipient=email).order_by("-created").first()
    assert mail is not None, f"no mail to {email}"
    return mail


def link_in(mail: Mail, part: str = "") -> str:
    """Return the path of the first link in a mail that has `part`."""
    links = re.findall(r"https?://[^/\s]+(/\S*)", mail.text)
    return str(next(link for link in links if part in link))
