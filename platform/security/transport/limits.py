"""uvicorn's HTTP/1.1 with limits that it has not: for the head of a request, and for how long one may take to arrive.

Without them a caller who sends header after header fills the memory, on the pages' port without any sign-in (10 MB sent
are 100 MB held), and one who sends nothing, or never the end, keeps a connection for ever. Imports no Django.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD = 65_536
"""Bytes in a row that are neither the end of a head nor a part of a body: header lines, trailers, a long address."""
HEADERS = 200
"""Header lines of one request."""
ARRIVES = 120.0
"""Seconds for a request to arrive as a whole, and for the first byte of a new connection."""


class LimitedProtocol(HttpToolsProtocol):
    """Ends connections whose requests are too long in the head, or too slow. What is answered takes any time."""

    arrives = ARRIVES
    _late: asyncio.TimerHandle | None = None
    _useful = _whole = False
    _head = 0

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        self._useful = self._whole = False
        super().data_received(data)
        # One read is at most 256 KiB, and what it finished is not counted: nothing that is in order is cut off.
        self._head = 0 if self._useful else self._head + len(data)
        if self._head > HEAD:
            self.send_400_response("This request has a longer head than any that is in order.")
        elif self._whole:
            self._wait_no_more()
        elif self._late is None:
            self._wait()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._whole = False

    def on_header(self, name: bytes, value: bytes) -> None:
        if len(self.headers) >= HEADERS:
            raise ValueError  # the parser hands it on, and the answer is 400
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._useful = True
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._useful = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._useful = self._whole = True
        super().on_message_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._wait_no_more()
        super().connection_lost(exc)

    def _wait(self) -> None:
        self._wait_no_more()
        self._late = self.loop.call_later(self.arrives, self.transport.close)

    def _wait_no_more(self) -> None:
        if self._late is not None:
            self._late.cancel()
        self._late = None
