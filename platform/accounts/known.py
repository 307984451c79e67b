"""Browsers that have signed in before, so that a stranger's wrong guesses don't lock an account's owner out.

Tries are counted for each account. A browser that once signed in to it carries a signed mark and is counted by itself:
guessing from elsewhere can use up the strangers' tries, never its own. (OWASP calls these device cookies.)
"""

from __future__ import annotations

import hashlib
import secrets

from django.conf import settings
from django.http import HttpRequest, HttpResponse

COOKIE = "hearth-known"
SALT = "accounts.known"
LIFETIME_S = 365 * 86400
PATH = "/account/"


def remember(response: HttpResponse, email: str) -> None:
    """Mark the browser as one that signed in to the account of `email`."""
    response.set_signed_cookie(
        COOKIE,
        f"{_hash(email)}.{secrets.token_hex(16)}",
        salt=SALT,
        max_age=LIFETIME_S,
        path=PATH,
        secure=settings.SECURE,
        httponly=True,
        samesite="Lax",
    )


def browser_of(request: HttpRequest, email: str) -> str:
    """Return the name of this browser if it has signed in to the account of `email` before, else ""."""
    account, _, browser = str(request.get_signed_cookie(COOKIE, "", salt=SALT, max_age=LIFETIME_S)).partition(".")
    return browser if account == _hash(email) else ""


def _hash(email: str) -> str:
    return hashlib.sha256(email.lower().encode()).hexdigest()[:32]
