"""The real stack with an HSM: the move without downtime, a start without the key file, and one without the HSM."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from config.embedded import children
from tests.bench.floor import free_ports
from tests.security.softhsm import Hsm
from tests.stack import Stack
from tests.way import Person


@pytest.fixture
def stack(hsm: Hsm) -> Iterator[Stack]:
    """A Hearth of its own that starts with a key file and knows the HSM."""
    with tempfile.TemporaryDirectory(prefix="hearth-keys-", dir="/tmp") as folder:
        Path(folder).chmod(0o711)
        made = Stack(Path(folder) / "state", free_ports(1)[0], {k: str(v) for k, v in hsm.settings().items()})
        try:
            yield made
        finally:
            if made.process is not None and made.process.poll() is None:
                made.stop()


def keys(stack: Stack, *words: str) -> str:
    """Run `manage.py keys` as somebody on the stack's machine would (make manage)."""
    command = [sys.executable, "-m", "config.embedded.manage", "keys", *words]
    done = subprocess.run(command, cwd="/", env=stack.environment(), capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


def test_it_moves_to_the_hsm_while_it_runs(stack: Stack, hsm: Hsm) -> None:
    stack.start()
    alice = Person(stack, "alice@example.org")
    alice.sign_up()
    # Somebody else's shell knows another HSM than the processes that run.
    right = dict(stack.settings)
    stack.settings["HEARTH_HSM_SLOT"] = "7"
    refused = keys(stack, "move-to-hsm")
    assert "the web server (process" in refused
    assert "the worker (process" in refused
    stack.settings = right
    assert "needed no more" in keys(stack, "move-to-hsm")
    key_file = stack.state / "keys" / "root.key"
    key_file.unlink()
    # Her session and second factor are sealed values of before the move.
    alice.create_organisation("Alice and friends", "beacon")
    alice.browser.close()
    stack.stop()
    stack.start()
    assert not key_file.exists()
    assert "root key hsm:" in keys(stack, "show")
    stack.stop()
    assert "No Hearth runs on" in keys(stack, "show")
    hsm.take_away()
    with pytest.raises(AssertionError, match=r"The HSM .* does not answer"):
        stack.start(60)


def test_hearths_processes_get_what_an_hsm_needs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    given = {"HEARTH_HSM_PIN_FILE": "/pin", "HEARTH_KEY_FILE": "/key", "SOFTHSM2_CONF": "/conf", "HEARTH_NONE": "x"}
    monkeypatch.setattr(os, "environ", given)
    passed = children.django_environment(tmp_path, "postgres:///x", "redis://x")
    assert {name: passed.get(name) for name in given} == given | {"HEARTH_NONE": None}
    assert "SOFTHSM2_CONF" not in children.base_environment()
