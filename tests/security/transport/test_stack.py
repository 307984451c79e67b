"""The real web process: both of its servers, their certificates by themselves, and what must not take them down."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from security.transport.client import InternalClient
from security.transport.errors import CallRefused, NotTrusted, Unreachable
from security.transport.files import Files
from security.transport.tls import client_context
from tests.bench.floor import free_ports
from tests.security.transport.pki import LISTENER, Ca, store
from tests.security.transport.running import until
from tests.stack import ROOT, Stack

LIFE = 20
"""Seconds that a certificate lives here."""


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="hearth-internal-", dir="/tmp") as made:
        Path(made).chmod(0o711)
        yield Path(made)


@pytest.fixture
def stack(folder: Path) -> Iterator[Stack]:
    settings = {"HEARTH_INTERNAL_CERTIFICATE_SECONDS": str(LIFE)}
    made = Stack(folder / "state", free_ports(1)[0], settings)
    try:
        yield made
    finally:
        if made.process is not None and made.process.poll() is None:
            made.stop()


def manage(stack: Stack, *words: str) -> str:
    """Run `manage.py` as somebody on the stack's machine would."""
    command = [sys.executable, "manage.py", *words]
    environment = stack.part("uvicorn").environ()
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout


def scraper(stack: Stack, folder: Path) -> InternalClient:
    """Return a caller with a certificate that `manage.py certificate` gave."""
    manage(stack, "certificate", "issue", "metrics", "prometheus", str(folder / "prometheus"))
    names = ("certificate.pem", "key.pem", "trust.pem")
    return InternalClient(f"127.0.0.1:{stack.internal_port}", *(folder / "prometheus" / name for name in names))


def listeners_certificate(stack: Stack, folder: Path) -> bytes:
    files = Files(*(folder / "prometheus" / name for name in ("certificate.pem", "key.pem", "trust.pem")))
    plain = socket.create_connection(("127.0.0.1", stack.internal_port), 10)
    with client_context(files.read()).wrap_socket(plain, server_hostname="localhost") as connection:
        return connection.getpeercert(True) or b""


def refused_with(client: InternalClient, path: str) -> int:
    with pytest.raises(CallRefused) as caught:
        client.get(path)
    return caught.value.status


def test_certificates_renew_by_themselves_and_nothing_takes_the_listener_down(stack: Stack, folder: Path) -> None:
    stack.start()
    with scraper(stack, folder) as calling:
        assert refused_with(calling, "/v1/certificate") == 405
        # The pages' server knows no internal route, whatever is said to it; this one knows no page.
        for path in ("/v1/certificate", "/metrics", "/v1/data-keys"):
            assert httpx.post(stack.url + path, headers={"hearth.caller": "agent"}).status_code == 404
        assert refused_with(calling, "/healthz") == 404
        first = listeners_certificate(stack, folder)
        database = stack.part("postgres -D")
        calling.renew()  # nobody can while the database is away
        database.suspend()
        # While the database takes no connections its certificate comes of age; the listener answers all the same.
        try:
            end = time.monotonic() + LIFE / 2
            answered = 0
            while time.monotonic() < end:
                with contextlib.suppress(NotTrusted):  # the machine sleeps through the rest of its life
                    assert refused_with(calling, "/v1/certificate") == 405
                    answered += 1
                time.sleep(0.5)
            assert answered
        finally:
            database.resume()
        renewals = 0
        end = time.monotonic() + 90
        while renewals < 1 or listeners_certificate(stack, folder) == first:
            assert time.monotonic() < end
            with contextlib.suppress(Unreachable):  # the machine slept through a whole life of a certificate
                renewals += calling.renew_if_due()
                assert refused_with(calling, "/v1/certificate") == 405
            time.sleep(0.5)
    kept = [path for path in stack.state.rglob("*") if path.is_file() and "postgres" not in path.parts]
    assert not [path for path in kept if b"EC PRIVATE" in path.read_bytes() or b"BEGIN PRIVATE" in path.read_bytes()]
    stack.stop()
    log = (stack.state / "logs" / "web.log").read_text()
    assert "Traceback" not in log


def test_a_taken_internal_port_is_one_sentence(stack: Stack) -> None:
    with socket.create_server(("127.0.0.1", stack.internal_port)):
        done = subprocess.run(
            [sys.executable, "-m", "config.embedded"],
            cwd=ROOT, env=stack.environment(), capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
    assert done.returncode == 1
    said = f"Hearth can't listen on 127.0.0.1 port {stack.internal_port}: Address already in use. Nothing was started."
    assert said in done.stdout
    assert "make run HEARTH_INTERNAL_PORT=" in done.stdout


def test_mounted_files_that_come_late_and_are_exchanged(stack: Stack, folder: Path) -> None:
    """As on Kubernetes: cert-manager's Secret is not there yet when the process starts, and is renewed later."""
    ca, mounted = Ca(), folder / "mounted"
    names = {"CERTIFICATE": "certificate.pem", "KEY": "key.pem", "TRUST": "trust.pem"}
    stack.settings = {f"HEARTH_INTERNAL_{word}": str(mounted / name) for word, name in names.items()}
    mounted.mkdir()
    starting = threading.Thread(target=stack.start)
    starting.start()
    web = stack.state / "logs" / "web.log"
    until(lambda: web.exists() and "could not be renewed" in web.read_text(), 60)
    store(mounted, ca.material(LISTENER))
    starting.join(60)
    agent = store(folder / "agent", ca.material())
    with InternalClient(f"127.0.0.1:{stack.internal_port}", agent.certificate, agent.key, agent.trust) as calling:
        assert refused_with(calling, "/v1/certificate") == 405
    assert web.read_text().count("could not be renewed") == 1
