"""Answers for a server that isn't there to answer: the well-known files of its name, and why it is suspended.

`front.py <port> <front.json>`; the file holds `server` and `client` (the contents of /.well-known/matrix/*, or null)
and `suspended` (a message, or null). Standard library only, so that any image with Python will do.
https://spec.matrix.org/v1.16/server-server-api/#well-known-delegation
"""

from __future__ import annotations

import json
import signal
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

WELL_KNOWN = "/.well-known/matrix/"
HEADERS = {
    "Content-Type": "application/json",
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Allow-Methods": "GET, HEAD, POST, PUT, DELETE, OPTIONS",
    "Access-Control-Allow-Headers": "X-Requested-With, Content-Type, Authorization",
}


def answer(content: dict[str, Any], path: str) -> tuple[int, dict[str, Any]]:
    """Return status and JSON for a path."""
    path = path.split("?", 1)[0]
    if path == "/health":
        return 200, {}
    if path.startswith(WELL_KNOWN) and content.get(path[len(WELL_KNOWN) :]):
        return 200, content[path[len(WELL_KNOWN) :]]
    if content.get("suspended") and not path.startswith(WELL_KNOWN):
        # As Synapse says it with hs_disabled.
        fault = {"errcode": "M_RESOURCE_LIMIT_EXCEEDED", "limit_type": "hs_disabled", "error": content["suspended"]}
        return 403, fault
    return 404, {"errcode": "M_NOT_FOUND", "error": "There is nothing here."}


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    timeout = 30
    content: dict[str, Any] = {}

    def _answer(self) -> None:
        status, body = answer(self.content, self.path)
        if self.command == "OPTIONS":
            status, body = 200, {}
        text = json.dumps(body).encode()
        self.send_response(status)
        for name, value in HEADERS.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(text)))
        # A body that was not read can't be told from the next request.
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        if self.command != "HEAD":
            self.wfile.write(text)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_OPTIONS = _answer  # noqa: N815 (http.server's names)

    def log_message(self, *_: Any) -> None:
        """Say nothing: who asked what is nobody's business."""


def main(arguments: list[str]) -> None:
    """Serve until a SIGTERM."""
    Handler.content = json.loads(Path(arguments[1]).read_text())
    server = ThreadingHTTPServer(("", int(arguments[0])), Handler)
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
    server.serve_forever()


if __name__ == "__main__":
    main(sys.argv[1:])
