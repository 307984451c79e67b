"""A homeserver that somebody has broken into: it answers what does most harm to whoever asks it."""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

WAYS = ("packed", "endless", "elsewhere", "deep", "nonsense")
UNPACKED = 64 << 20
"""Bytes that the packed answer becomes; more than anybody here may take."""
PACKED = gzip.compress(b'{"versions":["' + b"a" * UNPACKED + b'"]}', 1)


@dataclass
class Hostile:
    """Where it is, and every path that it was asked for."""

    url: str
    asked: list[str] = field(default_factory=list)


class Handler(BaseHTTPRequestHandler):
    """Answers as its server was told."""

    server: Homeserver

    def do_GET(self) -> None:
        self.server.found.asked.append(self.path)
        # Whoever is asked does not read on.
        with suppress(OSError):
            getattr(self, f"_{self.server.way}")()

    def _packed(self) -> None:
        self._answer(200, PACKED, **{"Content-Encoding": "gzip"})

    def _deep(self) -> None:
        self._answer(200, b"[" * 500_000)

    def _nonsense(self) -> None:
        self._answer(200, json.dumps({"versions": ["v1.11"], "verify_keys": 7, "server": [1]}).encode())

    def _elsewhere(self) -> None:
        if self.path == "/inside":
            self._answer(200, json.dumps({"versions": ["v1.11"]}).encode())
        else:
            self._answer(302, b"", Location="/inside")

    def _endless(self) -> None:
        self.send_response(200)
        self.end_headers()
        while True:
            self.wfile.write(b" " * 65536)

    def _answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_words: object) -> None:
        """Say nothing."""


class Homeserver(ThreadingHTTPServer):
    """Listens on loopback."""

    daemon_threads = True

    def __init__(self, way: str) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.way = way
        self.found = Hostile(f"http://127.0.0.1:{self.server_address[1]}")


@contextmanager
def hostile(way: str) -> Iterator[Hostile]:
    """Run one that answers in `way`, one of `WAYS`."""
    with Homeserver(way) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield server.found
        finally:
            server.shutdown()
            thread.join()
