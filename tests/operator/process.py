"""The operator as a process of its own, as it runs in a cluster: so that it can be killed."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from provisioning.providers.local.processes import Command, spawn_argv
from tests.cluster.api import Api
from tests.cluster.tools import Missing
from tests.left_out import leave_out
from tests.operator.render_helper import helper

ROOT = Path(__file__).resolve().parents[2]
LEASES = "hearth"


def helper_or_leave_out() -> Path:
    """Return the render helper, or leave the running test out."""
    try:
        return helper()
    except Missing as missing:
        leave_out(str(missing))


class Operator:
    """One operator process. Its log is in `log`; it dies with the tests."""

    def __init__(
        self,
        kubeconfig: Path,
        folder: Path,
        probe: str,
        *options: str,
        name: str = "operator",
        administrator: Path | None = None,
        program: Sequence[str] = ("provisioning.operator",),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.log = folder / f"{name}.log"
        self._folder = folder
        self._name = name
        self._program = program
        self._environment = environment or {}
        self._options = ["--kubeconfig", str(kubeconfig), "--probe", probe, "--port", "0", "--diagnose-after", "1"]
        self._options += ["--identity", name, "--helper", str(helper_or_leave_out()), *options]
        self.process: subprocess.Popen[bytes] | None = None
        self._http = httpx.Client(verify=False, trust_env=False, timeout=5)  # noqa: S501 (plain http on loopback)
        self._api = Api.from_kubeconfig(administrator or kubeconfig)

    def __enter__(self) -> Self:
        try:
            namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": LEASES}}
            self._api.apply(namespace)
        except Exception:
            self._api.close()
            raise
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            self.end()
        finally:
            self._api.close()
            self._http.close()

    def start(self) -> None:
        """Start it; return at once."""
        words = (sys.executable, "-m", *self._program, *self._options)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                spawn_argv(Command(self._name, words, ROOT, {})),
                cwd=ROOT,
                env={"HOME": str(self._folder), "PATH": os.defpath, "PYTHONPATH": str(ROOT), **self._environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def kill(self) -> None:
        """End it as a crash would."""
        self._send(signal.SIGKILL)

    def end(self) -> int:
        """Ask it to end, and return its exit code."""
        return self._send(signal.SIGTERM)

    def _send(self, number: signal.Signals) -> int:
        if self.process is None:
            return 0
        self.process.send_signal(number)
        try:
            return self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise
        finally:
            self.process = None

    def text(self) -> str:
        """Return what it has logged."""
        return self.log.read_text(errors="replace")

    def port(self) -> int:
        """Return the port of its health and its numbers."""
        return int(self.wait_for(r"serving on port (\d+)")[-1])

    def wait_for(self, pattern: str, *, seconds: float = 60) -> list[str]:
        """Wait until its log has a line; return all that match."""
        end = time.monotonic() + seconds
        while not (found := re.findall(pattern, self.text())):
            assert self.process is None or self.process.poll() is None, self.text()
            assert time.monotonic() < end, f"no {pattern!r} in its log:\n{self.text()}"
            time.sleep(0.05)
        return found

    def wait_until(self, reached: Callable[[], Any], what: str, *, seconds: float = 60) -> Any:
        """Return the first true value of `reached()`."""
        end = time.monotonic() + seconds
        while not (found := reached()):
            assert time.monotonic() < end, f"still no {what}; its log:\n{self.text()}"
            time.sleep(0.1)
        return found

    def get(self, path: str) -> httpx.Response:
        """Ask its own web server."""
        return self._http.get(f"http://127.0.0.1:{self.port()}{path}")

    def numbers(self) -> dict[str, float]:
        """Return its metrics."""
        lines = [line for line in self.get("/metrics").text.splitlines() if line and not line.startswith("#")]
        return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines}


def relists(operator: Operator) -> dict[str, float]:
    """Return how often everything of each kind was read."""
    return {name: count for name, count in operator.numbers().items() if "relists_total" in name}
