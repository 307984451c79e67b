"""How a program in a pod answers its operator, over HTTP. Imports no Django.

What it may be asked each program says itself. There is no secret and no password: the network policies of pods say who
gets so far.
"""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus

SECONDS = 10.0
"""Seconds for which somebody may be slow to ask, or to take the answer."""


class Handler(http.server.BaseHTTPRequestHandler):
    """One connection."""

    timeout = SECONDS
    protocol_version = "HTTP/1.1"

    def answer(self, code: HTTPStatus, body: bytes) -> None:
        """Answer, and leave."""
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        # One request for each connection: a body that nobody read can't be taken for the next request.
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the base class names it)
        """Say nothing: it is asked every few seconds."""


@contextmanager
def answered(handler: type[Handler], host: str, port: int) -> Iterator[int]:
    """Answer while the block lasts; give the port. Raises `OSError`."""
    server = http.server.ThreadingHTTPServer((host, port), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, name="answering", daemon=True)
    thread.start()
    try:
        yield int(server.server_address[1])
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
