"""One whole Hearth for all end-to-end tests, which ends with the last of them, and a real Chromium."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright

from tests.bench.floor import free_ports
from tests.left_out import need_chromium
from tests.stack import Stack, alive

QUIET = (
    "--no-sandbox",  # root can't have Chromium's sandbox
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-quic",
    "--no-first-run",
)


@pytest.fixture(scope="package")
def hearth() -> Iterator[Stack]:
    """A Hearth as `make run` starts it. At the end Ctrl-C must leave nothing behind."""
    folder = Path(tempfile.mkdtemp(prefix="hearth-e2e-", dir="/tmp"))
    folder.chmod(0o711)
    stack = Stack(folder / "state", free_ports(1)[0], {"HEARTH_DELETE_GRACE_HOURS": "0"})
    try:
        stack.start()
        yield stack
    finally:
        family = stack.family() if stack.process and stack.process.poll() is None else []
        if family:
            stack.stop()
        shutil.rmtree(folder, ignore_errors=True)
    assert not alive(family)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """Debian's Chromium. Only for a module: Django's ORM refuses to work while Playwright's event loop is there."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=need_chromium(), args=list(QUIET))
        yield browser
        browser.close()
