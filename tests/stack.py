"""A whole Hearth as `make run` starts it, on a state folder and a port of its own."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil

from tests.bench.floor import free_ports

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENTS = ROOT / "var" / "test" / "environments"


@dataclass
class Stack:
    """One running Hearth. `start` returns when its first page answers; `stop` is what Ctrl-C does."""

    state: Path
    port: int
    settings: dict[str, str] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
    process: subprocess.Popen[str] | None = None
    internal_port: int = field(default_factory=lambda: free_ports(1)[0])

    @property
    def url(self) -> str:
        return f"http://localhost:{self.port}"

    def start(self, limit: float = 120) -> float:
        """Start it and return the seconds until its first page was served."""
        started = time.perf_counter()
        self.process = subprocess.Popen(
            # Should this test run die, the whole stack stops.
            ["setpriv", "--pdeathsig", "TERM", "--", sys.executable, "-m", "config.embedded"],
            cwd=ROOT,
            env=self.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        threading.Thread(target=self._read, args=(self.process,), daemon=True).start()
        end = time.monotonic() + limit
        while time.monotonic() < end and self.process.poll() is None:
            # The last thing it prints is its address; a page served before that would have no links to show yet.
            if any(line.rstrip("/ \n").endswith(self.url) for line in self.lines) and self._answers():
                return time.perf_counter() - started
            time.sleep(0.02)
        raise AssertionError("Hearth did not start:\n" + "".join(self.lines))

    def stop(self) -> float:
        """Press Ctrl-C, wait for the end, and return the seconds it took."""
        assert self.process is not None
        started = time.perf_counter()
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(timeout=60)
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()
        return time.perf_counter() - started

    def environment(self) -> dict[str, str]:
        """Return the environment it runs in: nothing of the caller's settings, all of this stack's."""
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith("HEARTH_") and name not in {"DATABASE_URL", "REDIS_URL", "DJANGO_SETTINGS_MODULE"}
        }
        return {
            **kept,
            "PYTHONPATH": f"{ROOT / 'platform'}:{ROOT}",
            "HEARTH_STATE": str(self.state),
            "HEARTH_PORT": str(self.port),
            "HEARTH_INTERNAL_PORT": str(self.internal_port),
            "HEARTH_ENVIRONMENTS": str(ENVIRONMENTS),
            **self.settings,
        }

    def link(self, pattern: str) -> str:
        """Return the first printed address that has `pattern` in it, such as `/inbox/`."""
        found = re.search(rf"http://localhost:{self.port}\S*{re.escape(pattern)}\S*", "".join(self.lines))
        if found is None:
            raise AssertionError(f"Hearth printed no address with {pattern}:\n" + "".join(self.lines))
        return found.group()

    def family(self) -> list[psutil.Process]:
        """Return the supervisor and everything below it."""
        assert self.process is not None
        head = psutil.Process(self.process.pid)
        return [head, *head.children(recursive=True)]

    def part(self, words: str) -> psutil.Process:
        """Return the one process of Hearth's own whose command line has all these words, such as `celery worker`."""
        fitting = [one for one in self.family() if all(word in " ".join(_command(one)) for word in words.split())]
        if len(fitting) != 1:
            raise AssertionError(f"{len(fitting)} processes are “{words}”: {fitting}")
        return fitting[0]

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        with process.stdout as output:
            self.lines.extend(output)

    def _answers(self) -> bool:
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(self.url, timeout=5).status_code == 200
        return False


def _command(process: psutil.Process) -> list[str]:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.cmdline()
    return []


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Return those that still run."""
    return [one for one in processes if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]
