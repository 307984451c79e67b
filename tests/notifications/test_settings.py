"""The address of the mail server, as an operator types it."""

from __future__ import annotations

import pytest
from django.core.exceptions import ImproperlyConfigured

from config.settings_identity import smtp


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("smtp://mail.example", ("mail.example", 25, False, False)),
        ("smtp+tls://u:p@mail.example", ("mail.example", 587, True, False)),
        ("smtp+ssl://u:p@mail.example:2465", ("mail.example", 2465, False, True)),
    ],
)
def test_it_works(url: str, expected: tuple[str, int, bool, bool]) -> None:
    found = smtp(url)
    assert found is not None
    assert (found["host"], found["port"], found["use_tls"], found["use_ssl"]) == expected


def test_no_server() -> None:
    assert smtp("") is None


@pytest.mark.parametrize(
    "url", ["mail.example:25", "http://mail.example", "smtp://", "smtp://u:hush@mail.example:port"]
)
def test_a_malformed_address_stops_the_start_without_showing_the_password(url: str) -> None:
    with pytest.raises(ImproperlyConfigured, match="smtp") as refusal:
        smtp(url)
    assert "hush" not in str(refusal.value)
