"""The whole start, real: what one command brings up, what stops it, and that nothing ever stays behind."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from config.embedded.state import prepare_state
from provisioning.providers.local.paths import agent_socket, runtime_dir
from tests.bench.floor import free_ports
from tests.stack import Stack, alive

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def stack() -> Iterator[Stack]:
    """A Hearth that may be started; whatever runs of it at the end is killed by pid."""
    # Not below pytest's own folder, which is closed to the users that PostgreSQL and the servers run as.
    with tempfile.TemporaryDirectory(prefix="hearth-start-", dir="/tmp") as folder:
        Path(folder).chmod(0o711)
        stack = Stack(Path(folder) / "state", free_ports(1)[0])
        try:
            yield stack
        finally:
            if stack.process is not None and stack.process.poll() is None:
                stack.process.kill()
                stack.process.wait()
            gone(of_state(stack.state))
            shutil.rmtree(runtime_dir(stack.state))  # one that was killed leaves it


def of_state(state: Path) -> list[psutil.Process]:
    """Return every process that names the state folder or works below it."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if str(state) in " ".join(process.cmdline()) or process.cwd().startswith(str(state)):
                found.append(process)
    return found


def gone(processes: list[psutil.Process], *, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while left := alive(processes):
        assert time.monotonic() < end, left
        time.sleep(0.05)


def run(stack: Stack, **settings: str) -> tuple[int, str]:
    """Start a second one to its end; return its exit code and all it said."""
    environment = {**stack.environment(), **settings}
    words = [sys.executable, "-m", "config.embedded"]
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stdout + done.stderr


@contextlib.contextmanager
def shells_limit() -> Iterator[int]:
    """Start what is started inside with the soft limit of open files that most shells give; yield the hard one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(1024, hard), hard))
    try:
        yield hard
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def open_files(process: psutil.Process) -> int:
    """Return the soft limit that the kernel shows for a process."""
    found = re.search(r"^Max open files\s+(\d+)", Path(f"/proc/{process.pid}/limits").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1])


def test_one_command_up_and_ctrl_c_down(stack: Stack) -> None:
    with shells_limit() as hard:
        stack.start()
    assert open_files(stack.part("config.beat")) == min(1024, hard)
    for words in ("uvicorn", "providers.local.agent"):
        assert open_files(stack.part(words)) == min(65_536, hard), words
    assert httpx.get(f"{stack.url}/readyz").json()["status"] == "ready"
    runtime = Path(f"/tmp/hearth-{hashlib.sha256(bytes(stack.state)).hexdigest()[:8]}")
    assert agent_socket(stack.state) == runtime / "agent.sock"
    family = stack.family()
    # A child that a process has just forked counts its parent's memory once more, for a moment.
    end = time.monotonic() + 60
    while (used := memory(stack.family())) >= 400 * 2**20:
        assert time.monotonic() < end, used
        time.sleep(0.1)
    text = "".join(stack.lines)
    assert "✓ PostgreSQL and Redis" in text
    assert stack.link("/inbox/?token=")
    assert stack.link("/staff/claim/")

    code, said = run(stack, HEARTH_PORT=str(free_ports(1)[0]))
    assert code == 1
    assert f"process {family[0].pid}, {stack.url}" in said
    code, said = run(stack, HEARTH_STATE=str(stack.state.with_name("other")))
    assert code == 1
    assert f"can't listen on 127.0.0.1 port {stack.port}: Address already in use" in said
    assert "make run HEARTH_PORT=" in said

    stack.part("config.beat").kill()
    end = time.monotonic() + 60
    while not any("beat ended by itself (signal SIGKILL) and is started again" in line for line in stack.lines):
        assert time.monotonic() < end
        time.sleep(0.05)

    shutil.rmtree(runtime)  # somebody empties /tmp
    end = time.monotonic() + 60
    while not (agent_socket(stack.state).exists() and _ready(stack)):
        assert time.monotonic() < end
        time.sleep(0.05)
    assert any("The socket of PostgreSQL was removed" in line for line in stack.lines)

    everything = stack.family()
    stack.stop()
    assert stack.process is not None
    assert stack.process.returncode == 0
    gone(everything)
    assert of_state(stack.state) == []
    assert not runtime.exists()


def _ready(stack: Stack) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(f"{stack.url}/readyz").status_code == 200
    return False


def test_kill_9_leaves_nothing_and_the_next_start_heals(stack: Stack) -> None:
    stack.start()
    family = stack.family()
    assert len(family) > 8
    assert stack.process is not None
    stack.process.kill()
    stack.process.wait()
    # At once again, while PostgreSQL may still be going down.
    stack.lines.clear()
    stack.start()
    gone(family)
    assert httpx.get(f"{stack.url}/readyz").status_code == 200
    everything = stack.family()
    stack.process.send_signal(signal.SIGINT)
    time.sleep(0.1)
    stack.process.send_signal(signal.SIGINT)
    stack.process.wait(60)
    gone(everything)


def test_a_first_start_that_is_cut_off_anywhere_is_simply_begun_again(stack: Stack) -> None:
    """The database is there before anything else is: without its key it would be taken for damaged ever after."""
    for sign in ("State folder", "PostgreSQL and Redis"):
        words = [sys.executable, "-m", "config.embedded"]
        with subprocess.Popen(
            words, cwd=ROOT, env=stack.environment(), stdout=subprocess.PIPE, text=True, start_new_session=True
        ) as process:
            assert process.stdout is not None
            while sign not in process.stdout.readline():
                assert process.poll() is None
            process.send_signal(signal.SIGINT)
            rest = process.stdout.read()
        assert process.returncode == 0, rest
        assert "Nothing of it runs any more" in rest
    assert (stack.state / "postgres" / "PG_VERSION").exists()
    prepare_state(stack.state)
    gone(of_state(stack.state))


def memory(family: list[psutil.Process]) -> int:
    """Return the bytes that Hearth's own processes keep resident: all Python, which PostgreSQL and Redis are not."""
    used = 0
    for process in family:
        with contextlib.suppress(psutil.NoSuchProcess):  # it has ended meanwhile
            if "python" in process.name():
                used += process.memory_info().rss
    return used


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"HEARTH_PROT": "1"}, "HEARTH_PROT is not a setting of Hearth. Did you mean HEARTH_PORT?"),
        ({"HEARTH_PORT": "many"}, "HEARTH_PORT must be of type int; 'many' is not."),
        ({"HEARTH_HOST": "0.0.0.0"}, "no mail server is set"),
        ({"HEARTH_STATE": "/proc/1/state"}, "The state folder /proc/1/state can't be used: "),
    ],
)
def test_a_start_that_can_not_be_is_one_sentence(stack: Stack, settings: dict[str, str], sentence: str) -> None:
    code, said = run(stack, **settings)
    assert code in {1, 2}
    assert f"Hearth did not start. {sentence}" in said or sentence in said
    assert "Traceback" not in said
    assert not (stack.state / "postgres").exists()


def test_a_database_that_can_not_be_reached_is_one_sentence(stack: Stack) -> None:
    code, said = run(stack, DATABASE_URL=f"postgres://hearth:hush@127.0.0.1:{free_ports(1)[0]}/hearth")
    assert code == 1
    assert "The database can't be used:" in said
    assert "Traceback" not in said
    assert "hush" not in said
    assert os.path.lexists(stack.state / "logs" / "prepare.log")
