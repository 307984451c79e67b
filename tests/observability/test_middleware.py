"""At the edge of each request: whose address counts, and that no page is kept by a cache."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from django.test import Client, RequestFactory

from accounts.models import User
from observability.middleware import address_of, client_address


@pytest.mark.parametrize(
    ("proxies", "forwarded", "peer", "counts"),
    [
        (0, "203.0.113.9", "192.0.2.1", "192.0.2.1"),
        (1, "203.0.113.9", "10.0.0.1", "203.0.113.9"),
        (1, "1.1.1.1, 203.0.113.9", "10.0.0.1", "203.0.113.9"),
        (2, "1.1.1.1, 203.0.113.9, 10.0.0.2", "10.0.0.1", "203.0.113.9"),
        (2, "203.0.113.9", "10.0.0.1", "10.0.0.1"),
        (1, "not an address", "10.0.0.1", "10.0.0.1"),
        (1, "", "10.0.0.1", "10.0.0.1"),
        (0, "", "", None),
    ],
)
def test_whose_address_counts(settings: Any, proxies: int, forwarded: str, peer: str, counts: str | None) -> None:
    settings.HEARTH = {**settings.HEARTH, "HEARTH_TRUSTED_PROXIES": proxies}
    request = RequestFactory().get("/", REMOTE_ADDR=peer, HTTP_X_FORWARDED_FOR=forwarded)
    assert client_address(request) == counts


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("192.0.2.1:4711", "192.0.2.1"),
        ("[2001:db8::1]:4711", "2001:db8::1"),
        ("2001:DB8::1", "2001:db8::1"),
        ("fe80::1%eth0", "fe80::1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("unknown", None),
        ("192.0.2.1\x00", None),
    ],
)
def test_what_is_an_address(text: str, address: str | None) -> None:
    assert address_of(text) == address


@pytest.mark.parametrize(
    "page", ["/", "/account/", "/account/email/", "/account/2fa/recovery-codes/", "/organisations/new/", "/nothing/"]
)
def test_no_cache_keeps_a_page(alice: User, client_for: Callable[[User], Client], page: str) -> None:
    answer = client_for(alice).get(page)
    assert {"no-store", "private"} <= {word.strip() for word in answer["Cache-Control"].split(",")}


def test_static_files_are_kept(client: Client, db: None) -> None:
    answer: Any = client.get("/static/css/base.css")
    assert b"".join(answer.streaming_content)
    answer.close()
    assert "no-store" not in answer["Cache-Control"]
    assert "frame-ancestors 'none'" in answer["Content-Security-Policy"]


@pytest.mark.parametrize("page", ["/", "/account/login/", "/nothing/", "/healthz"])
def test_every_answer_says_what_a_browser_may_do(client: Client, db: None, page: str) -> None:
    answer = client.get(page)
    policy = answer["Content-Security-Policy"]
    assert "frame-ancestors 'none'" in policy
    assert "form-action 'self'" in policy
    assert "unsafe" not in policy
    assert answer["X-Content-Type-Options"] == "nosniff"
    assert answer["Referrer-Policy"] == "same-origin"
