"""A declared stand-in for backup agents: pods are kwok's here, so nothing would tell how backups are.

It answers `/<namespace>/…` as `backups/engine/serving.py` does; tests/backups/engine/test_serving.py asks the real one.
"""

from __future__ import annotations

import json
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit


class Agents:
    """Answers for every server. A test says in `ready`, `slow` and `silent` how a server's agent is, by namespace."""

    def __init__(self) -> None:
        self.faults: dict[str, tuple[str, str]] = {}
        """Reason and text of agents that are not well."""
        self.silent: set[str] = set()
        self.slow: set[str] = set()
        """Agents that have not stored everything yet, nor taken the final backup."""
        self.stored: dict[str, str] = {}
        self.finals: dict[str, str] = {}
        self.asked: Counter[tuple[str, str]] = Counter()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._answer(*outer.answer(self.path))

            def do_POST(self) -> None:
                self._answer(*outer.answer(self.path))

            def _answer(self, status: int, found: dict[str, Any]) -> None:
                body = json.dumps(found).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_words: Any) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    @property
    def address(self) -> str:
        """What the operator is given as `--agent`."""
        return f"http://127.0.0.1:{self._server.server_address[1]}/{{namespace}}"

    def answer(self, path: str) -> tuple[int, dict[str, Any]]:
        """Return status and body."""
        found = urlsplit(path)
        _empty, namespace, wish = found.path.split("/", 2)
        identity = parse_qs(found.query).get("id", [""])[0]
        self.asked[namespace, wish] += 1
        if namespace in self.silent:
            return 502, {}
        if wish == "final":
            self.finals[namespace] = identity
        if wish == "store-all" and namespace not in self.slow:
            self.stored[namespace] = identity
        return (200 if wish == "status" else 202), self._status(namespace)

    def _status(self, namespace: str) -> dict[str, Any]:
        reason, text = self.faults.get(namespace, ("Written", "Restore point p1 and all that followed it are stored."))
        found: dict[str, Any] = {"ready": namespace not in self.faults, "reason": reason, "text": text}
        found["stored"] = self.stored.get(namespace, "")
        if order := self.finals.get(namespace):
            state = "taken" if namespace in self.slow else "done"
            found["final"] = {"id": order, "state": state, "point": "p2", "done_bytes": 7}
        return found

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
