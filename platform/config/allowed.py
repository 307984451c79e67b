"""What values of settings may be: each check returns what is wrong with one, or nothing. `config.env` names them."""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

_PLACE = r"([a-z0-9][a-z0-9-]{0,39})"
FOLDER = re.compile(rf"{_PLACE}:(/[^:]+)")
BUCKET = re.compile(rf"{_PLACE}:((?:https://[^/@?#]+|http://127\.0\.0\.1:\d+|s3:/)(?:/[A-Za-z0-9][A-Za-z0-9._-]*)+)")


def one_of(*words: str) -> Callable[[Any], str]:
    return lambda value: "" if value in words else f"must be one of {', '.join(words)}; it is {value!r}"


def between(least: int, most: int) -> Callable[[Any], str]:
    return lambda value: "" if least <= value <= most else f"must lie between {least} and {most}; it is {value}"


def url(*schemes: str) -> Callable[[Any], str]:
    example = f"{schemes[0]}://host"

    def check(value: Any) -> str:
        try:
            parts = urlsplit(value)
            good = parts.scheme in schemes and parts.port != 0
        except ValueError:
            good = False
        return "" if good else f"must be an address such as {example} (allowed: {', '.join(schemes)})"

    return check


def places(value: Any) -> str:
    found = [FOLDER.fullmatch(entry) or BUCKET.fullmatch(entry) for entry in value]
    if not all(found):
        return (
            "must be `name:/path` or `name:https://host/bucket/prefix` entries with commas between, such as "
            "`region-one:/srv/keys,region-two:https://s3.example.org/keys`"
        )
    for what, group in (("name", 1), ("place", 2)):
        if len({each[group] for each in found if each}) < len(found):
            return f"names one {what} twice"
    return ""


def access(value: Any) -> str:
    """Say what is wrong without a word of it: it holds secrets."""
    fault = 'must be JSON such as `{"region-two": {"access_key": "…", "secret_key": "…"}}`; more is in the manual'
    try:
        found = json.loads(value or "{}")
    except ValueError:
        return fault
    known = {"access_key", "secret_key", "region", "certificates"}
    for each in found.values() if isinstance(found, dict) else [None]:
        if not isinstance(each, dict) or set(each) - known or not all(isinstance(part, str) for part in each.values()):
            return fault
        if ("access_key" in each) != ("secret_key" in each):
            return fault
    return ""


def file(value: Any) -> str:
    if "-----BEGIN" in value:
        return "must be the path of a PEM file, and it is such a file's content"
    return "" if value.startswith("/") else f"must be the path of a file, from the root on; it is {value!r}"


def address(value: Any) -> str:
    try:
        ipaddress.ip_address("127.0.0.1" if value == "localhost" else value)
    except ValueError:
        return f"must be an IP address of this machine, such as 127.0.0.1 or 0.0.0.0; it is {value!r}"
    return ""
