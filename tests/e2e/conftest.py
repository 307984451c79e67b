"""One whole Hearth for all end-to-end tests, which ends with the last of them, and a real Chromium."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from playwright.sync_api import Browser, sync_playwright

from tests.bench.floor import free_ports
from tests.chaos import kill_during_step
from tests.left_out import need_chromium
from tests.stack import Stack, alive
from tests.way import Connection, Person

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


@pytest.fixture(scope="package")
def dora(hearth: Stack) -> Iterator[Person]:
    """Dora has signed up."""
    person = Person(hearth, "dora@example.org")
    person.sign_up()
    yield person
    person.browser.close()


class OneServer:
    """Dora's server, which many tests share: each that runs costs the machine. `forget` it once it is deleted."""

    def __init__(self, hearth: Stack, dora: Person) -> None:
        self.hearth, self.dora = hearth, dora
        self.name, self.path = "", ""
        self._organisation = ""
        self._connection: Connection | None = None
        self._made = 0

    def make(self) -> None:
        """Make it: all messages about it are lost, and the worker that makes it is killed."""
        self._organisation = self._organisation or self.dora.create_organisation("Faults", "beacon")
        self._made += 1
        self.name = f"faults{self._made}"
        broker = redis.Redis.from_url(self.hearth.part("uvicorn").environ()["REDIS_URL"])
        broker.flushall()
        self.path = self.dora.create_server(self._organisation, self.name)
        broker.flushall()
        broker.close()
        kill_during_step(self.hearth, self.path.split("/")[4], "start")
        self.dora.wait_for(self.path)
        self._connection = self.dora.connection(self.path)

    @property
    def connection(self) -> Connection:
        """How its administrator signs in there: the password is shown once."""
        assert self._connection is not None
        return self._connection

    def forget(self) -> None:
        self.path = ""


@pytest.fixture(scope="package")
def kept(hearth: Stack, dora: Person) -> OneServer:
    return OneServer(hearth, dora)


@pytest.fixture
def server(kept: OneServer) -> OneServer:
    """Dora's server, ready: made through faults."""
    if not kept.path:
        kept.make()
    kept.dora.wait_for(kept.path)
    return kept


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """Debian's Chromium. Only for a module: Django's ORM refuses to work while Playwright's event loop is there."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=need_chromium(), args=list(QUIET))
        yield browser
        browser.close()
