"""What a test needs of the machine. Without it the test is left out, loudly; with CI=true that is a failure."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest

from tests.prepare import browser, postgres_tls, promtool, redis_tls


def need_chromium() -> str:
    """Return the path of Chromium."""
    path = browser()
    return path or leave_out("there is no Chromium. Install your system's package chromium, or run make test as root.")


def need_promtool() -> str:
    """Return the path of promtool."""
    path = promtool()
    return path or leave_out("promtool is missing. Install your system's package prometheus, or run make test as root.")


def need_tls_servers() -> None:
    """Leave the test out where PostgreSQL or Redis with TLS is missing."""
    for package, there in (("postgresql", postgres_tls), ("redis-server", redis_tls)):
        if not there():
            leave_out(f"{package} is missing. Install your system's package, or run make test as root.")


def leave_out(why: str) -> NoReturn:
    """Leave the running test out. Its reason stands in the summary at the end of the run."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"CI=true, so nothing may be left out, but {why}", pytrace=False)
    pytest.skip(f"*** LEFT OUT: {why}")
