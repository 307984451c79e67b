"""A declared stand-in for homeservers: nodes and pods are kwok's here, so nothing would answer the protocol checks.

It answers `/<namespace>/_matrix/…` for every namespace as a healthy Synapse does, unless told otherwise.
"""

from __future__ import annotations

import json
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

KEY = "ed25519:a_Test"


class Homeservers:
    """Answers for every server. `names`: server name by namespace, else `alice.example`."""

    def __init__(self, *, key: str = KEY) -> None:
        self.key = key
        self.names: dict[str, str] = {}
        self.silent: set[str] = set()
        """Namespaces whose server answers 502."""
        self.versions: dict[str, str] = {}
        self.asked: Counter[str] = Counter()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                _empty, namespace, path = self.path.split("/", 2)
                status, found = outer.answer(namespace, path)
                body = json.dumps(found).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
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
        """What the operator is given as `--probe`."""
        return f"http://127.0.0.1:{self._server.server_address[1]}/{{namespace}}"

    def answer(self, namespace: str, path: str) -> tuple[int, dict[str, Any]]:
        """Return status and body."""
        self.asked[namespace] += 1
        if namespace in self.silent:
            return 502, {}
        if path == "_matrix/client/versions":
            return 200, {"versions": ["v1.11"]}
        if path == "_matrix/key/v2/server":
            return 200, {"server_name": self.names.get(namespace, "alice.example"), "verify_keys": {self.key: {}}}
        if path == "_matrix/federation/v1/version" and namespace in self.versions:
            return 200, {"server": {"name": "Synapse", "version": self.versions[namespace]}}
        return 404, {}

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
