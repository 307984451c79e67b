"""A declared stand-in for the pods that bring servers back: pods are kwok's here, so nothing would tell how far it is.

It answers `/<namespace>/status` as `backups/engine/recovering/told.py` does; tests/backups/restore/test_pod.py asks the
real one.
"""

from __future__ import annotations

import json
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self


class Recovering:
    """Answers for every server what a test puts into `said`, by namespace; where that is nothing, with 404."""

    def __init__(self) -> None:
        self.said: dict[str, dict[str, Any]] = {}
        self.asked: Counter[str] = Counter()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                namespace = self.path.split("/")[1]
                outer.asked[namespace] += 1
                found = outer.said.get(namespace)
                body = json.dumps(found or {}).encode()
                self.send_response(200 if found else 404)
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
        """What the operator is given as `--recovery`."""
        return f"http://127.0.0.1:{self._server.server_address[1]}/{{namespace}}"

    def tell(self, namespace: str, revision: str, state: str, **values: Any) -> None:
        """Let a pod say this from now on."""
        self.said[namespace] = {"revision": revision, "state": state, "step": "base", **values}

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
