"""A proxy before an S3 server that injects faults: errors, cut connections, silence, lost answers, slow lines."""

from __future__ import annotations

import contextlib
import http.client
import re
import socket
import ssl
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self

BLOCK = 64 * 1024
ERROR = "<?xml version='1.0' encoding='UTF-8'?><Error><Code>{code}</Code><Message>a test</Message></Error>"
CODES = {500: "InternalError", 503: "SlowDown", 403: "AccessDenied", 507: "XMinioStorageFull"}


@dataclass
class Rule:
    """What is done to requests that fit `pattern` ("PUT /bucket/key?partNumber=2&…"), so many times.

    `status` answers without asking the server; `code` is the error's name where the status has several. `cut_request`
    and `cut_answer` break the connection after so many bytes of the body. `lose_answer` lets the server do it and
    breaks the connection then. `silent` never answers. `damage` changes a bit of the request's body. `pause` is in
    seconds, for each 64 KiB either way. `header` is the beginning of a header's name that a request must have.
    """

    pattern: str
    header: str = ""
    times: int | None = None
    status: int = 0
    code: str = ""
    cut_request: int | None = None
    cut_answer: int | None = None
    lose_answer: bool = False
    silent: bool = False
    damage: bool = False
    pause: float = 0.0
    hits: int = 0


class S3Faults:
    """Use as a context manager. `rules` are looked through in order; the first that fits and is left counts."""

    def __init__(self, upstream: str, tls: ssl.SSLContext | None = None) -> None:
        self._upstream = upstream.removeprefix("http://")
        self.rules: list[Rule] = []
        self.requests: list[str] = []
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.faults = self
        self._scheme = "http"
        if tls:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
            self._scheme = "https"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._server.shutdown()
        self._thread.join(60)
        self._server.server_close()

    @property
    def endpoint(self) -> str:
        return f"{self._scheme}://127.0.0.1:{self._server.server_address[1]}"

    @contextlib.contextmanager
    def rule(self, pattern: str, **options: object) -> Iterator[Rule]:
        """Apply a rule for as long as the block runs."""
        rule = Rule(pattern, **options)  # type: ignore[arg-type]  # a rule's own fields
        with self._lock:
            self.rules.insert(0, rule)
        try:
            yield rule
        finally:
            with self._lock:
                self.rules.remove(rule)

    def match(self, request: str, headers: Iterable[str]) -> Rule | None:
        with self._lock:
            names = [name.lower() for name in headers]
            self.requests.append(f"{request} {' '.join(names)}")
            for rule in self.rules:
                if not any(name.startswith(rule.header) for name in names):
                    continue
                if re.search(rule.pattern, request) and (rule.times is None or rule.hits < rule.times):
                    rule.hits += 1
                    return rule
        return None

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(self._upstream, timeout=60)

    def rest(self) -> None:
        """Be silent until the proxy ends."""
        self._ended.wait(60)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64
    faults: S3Faults

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: cut connections are what this is for."""


class _Cut(Exception):
    pass


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    wbufsize = 256 * 1024
    disable_nagle_algorithm = True

    def log_message(self, *_: object) -> None:
        pass

    def _serve(self) -> None:
        rule = self.server.faults.match(f"{self.command} {self.path}", self.headers) or Rule("")
        try:
            self._apply(rule)
            self.wfile.flush()
        except (_Cut, OSError, http.client.HTTPException):
            self.close_connection = True
            with contextlib.suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)

    def _apply(self, rule: Rule) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        if rule.silent:
            self.server.faults.rest()
            raise _Cut
        if rule.status:
            self._read(length)
            self._refuse(rule)
            return
        connection = self.server.faults.connect()
        try:
            self._forward(connection, length, rule)
            answer = connection.getresponse()
            if rule.lose_answer:
                answer.read()
                raise _Cut
            self._answer(answer, rule)
        finally:
            connection.close()

    def _read(self, length: int) -> None:
        while length > 0:
            length -= len(self.rfile.read(min(BLOCK, length)) or b"") or length

    def _refuse(self, rule: Rule) -> None:
        body = ERROR.format(code=rule.code or CODES.get(rule.status, "Other")).encode()
        self.send_response(rule.status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _forward(self, connection: http.client.HTTPConnection, length: int, rule: Rule) -> None:
        connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            connection.putheader(name, value)
        connection.endheaders()
        sent = 0
        while sent < length:
            if rule.cut_request is not None and sent >= rule.cut_request:
                raise _Cut
            data = self.rfile.read(min(BLOCK, length - sent))
            if not data:
                raise _Cut
            connection.send(bytes([data[0] ^ 1]) + data[1:] if rule.damage and not sent else data)
            sent += len(data)
            time.sleep(rule.pause)

    def _answer(self, answer: http.client.HTTPResponse, rule: Rule) -> None:
        self.send_response_only(answer.status, answer.reason)
        body = self.command != "HEAD" and answer.status not in {204, 304}
        for name, value in answer.getheaders():
            if name.lower() not in {"transfer-encoding", "connection"}:
                self.send_header(name, value)
        if answer.getheader("Content-Length") is None and body:
            self.close_connection = True
            self.send_header("Connection", "close")
        self.end_headers()
        sent = 0
        while body and (data := answer.read(BLOCK)):
            if rule.cut_answer is not None and sent + len(data) > rule.cut_answer:
                self.wfile.write(data[: max(rule.cut_answer - sent, 0)])
                self.wfile.flush()
                raise _Cut
            self.wfile.write(data)
            sent += len(data)
            time.sleep(rule.pause)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _serve  # noqa: N815 (the base class looks for these names)
