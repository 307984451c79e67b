"""A declared stand-in for the operator where only its word counts: it says of MatrixServers what the operator would.

What is told to close is closed at once, and a recovery is as far as the test says. The real operator is tried by
tests/operator, and both together by `make e2e-node`.
"""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from tests.cluster.api import Api, ApiError, Object

KIND = ("hearth.host/v1", "MatrixServer")
SINCE = "2026-11-24T00:00:00Z"


class Resting:
    """Writes the status of every MatrixServer that it finds. `recovery` is what it says of each recovery."""

    def __init__(self, kubeconfig: Path) -> None:
        self._kubeconfig = kubeconfig
        self._end = threading.Event()
        self.recovery: dict[str, Any] = {"state": "done", "result": {"point": "p"}}
        self.routed: list[int] = []
        """At each look, how many MatrixServers of one name could be reached from outside."""

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._end.set()
        self._thread.join()

    def _run(self) -> None:
        with Api.from_kubeconfig(self._kubeconfig) as api:
            while not self._end.wait(0.05):
                # Gone in between, or an API server that is just starting, or is busy.
                with contextlib.suppress(ApiError, httpx.TransportError):
                    found = api.list(*KIND)
                    self.routed.append(sum(not each["spec"]["routing"].get("unrouted") for each in found))
                    for each in found:
                        self._tell(api, each)

    def _tell(self, api: Api, server: Object) -> None:
        spec, before = server["spec"], server.get("status") or {}
        reason = "Closed" if spec.get("closed") else "Recovering" if "recovery" in spec else "Running"
        status: dict[str, Any] = {
            "observedGeneration": server["metadata"]["generation"],
            "conditions": [
                _condition("Ready", "True" if reason == "Running" else "False", reason),
                _condition("Progressing", "False", "Settled"),
            ],
        }
        if wanted := spec.get("recovery"):
            mode = "settle" if wanted.get("settle") else "restore"
            said = {"state": "cancelled"} if wanted.get("cancelled") else self.recovery
            status["recovery"] = {"revision": wanted["secret"]["revision"], "mode": mode, **said}
        if any(before.get(name) != value for name, value in status.items()):
            gone = {name: None for name in before.get("recovery") or {} if "recovery" in status}
            if gone:
                status["recovery"] = gone | status["recovery"]
            api.patch(server, {"status": status}, sub="status")


def _condition(kind: str, status: str, reason: str) -> dict[str, str]:
    return {"type": kind, "status": status, "reason": reason, "message": reason, "lastTransitionTime": SINCE}
