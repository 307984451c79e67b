"""Who may read the inbox page: a person at this very machine who has the token that the start printed."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from pathlib import Path

from django.conf import settings
from django.http import HttpRequest, HttpResponse

from notifications import transport

COOKIE = "hearth-inbox"
COOKIE_AGE = 12 * 3600
SALT = "notifications.inbox"
LOOPBACK_NAMES = {"localhost", "127.0.0.1", "[::1]"}
# With any of these somebody else may sit behind the loopback connection.
FORWARDED = ("X-Forwarded-For", "X-Forwarded-Host", "X-Real-IP", "Forwarded", "Via")


def inbox_is_here(request: HttpRequest) -> bool:
    """Tell whether the inbox exists for this client: no SMTP server, loopback on both ends, and no proxy in between."""
    if transport.configured() or any(name in request.headers for name in FORWARDED):
        return False
    return _is_loopback(request.META.get("REMOTE_ADDR", "")) and _host(request) in LOOPBACK_NAMES


def may_read(request: HttpRequest) -> bool:
    """Tell whether the client showed the token before and it is still the present one."""
    shown = request.get_signed_cookie(COOKIE, default="", salt=SALT, max_age=COOKIE_AGE)
    present = _fingerprint()
    return bool(present) and hmac.compare_digest(str(shown), present)


def token_is_right(token: str) -> bool:
    """Compare a token from the address with the one in the state folder, in constant time."""
    present = _token()
    return bool(present) and hmac.compare_digest(token.encode(), present.encode())


def remember(response: HttpResponse) -> None:
    """Give the browser a signed cookie, so that the token does not stay in addresses."""
    response.set_signed_cookie(
        COOKIE, _fingerprint(), salt=SALT, max_age=COOKIE_AGE, httponly=True, samesite="Strict", path="/inbox/"
    )


def _token() -> str:
    try:
        return Path(settings.INBOX_TOKEN_FILE).read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def _fingerprint() -> str:
    token = _token()
    return hashlib.sha256(token.encode()).hexdigest() if token else ""


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def _host(request: HttpRequest) -> str:
    host = request.get_host()
    return host.partition("]")[0] + "]" if host.startswith("[") else host.partition(":")[0]
