"""Where the internal listener is, by Hearth's settings. Imports no Django."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

AWAY = 10_000
"""How far the internal port lies from the public one."""
MOUNTED = ("HEARTH_INTERNAL_CERTIFICATE", "HEARTH_INTERNAL_KEY", "HEARTH_INTERNAL_TRUST")
EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 (compared, not bound)


def internal_port(settings: Mapping[str, Any]) -> int:
    """Return the listener's port."""
    chosen, public = int(settings["HEARTH_INTERNAL_PORT"]), int(settings["HEARTH_PORT"])
    return chosen or (public + AWAY if public + AWAY <= 65535 else public - AWAY)


def internal_fault(settings: Mapping[str, Any]) -> str:
    """Return why these settings can't go together, as a sentence, or the empty text."""
    given = [bool(settings[name]) for name in MOUNTED]
    if any(given) and not all(given):
        return f"Set all of {', '.join(MOUNTED)}, or none of them."
    if internal_port(settings) == settings["HEARTH_PORT"]:
        return "HEARTH_INTERNAL_PORT and HEARTH_PORT must differ: the internal listener is not the pages' web server."
    return ""


def internal_address(settings: Mapping[str, Any]) -> str:
    """Return the listener's address as those on this machine call it: `https://127.0.0.1:18000`."""
    host = settings["HEARTH_INTERNAL_HOST"]
    host = EVERYWHERE.get(host, host)
    return f"https://{f'[{host}]' if ':' in host else host}:{internal_port(settings)}"


def internal_hosts(settings: Mapping[str, Any]) -> list[str]:
    """Return every name and address that the listener's certificate is for, each once."""
    host = settings["HEARTH_INTERNAL_HOST"]
    named = ["localhost", "127.0.0.1", "::1", *([] if host in EVERYWHERE else [host])]
    return list(dict.fromkeys([*named, *settings["HEARTH_INTERNAL_NAMES"]]))
