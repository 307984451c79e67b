"""The pages' port, which asks nobody for a certificate: what never ends, or never begins, is not kept."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from config.embedded import children
from security.transport.limits import LimitedProtocol
from tests.bench.floor import free_ports
from tests.security.transport.running import read, says, until


async def slowly(scope: Any, receive: Any, send: Any) -> None:
    while (await receive()).get("more_body"):
        pass
    await asyncio.sleep(0.7)
    await says(scope, receive, send)


@pytest.fixture
def pages(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """The port of a server with the protocol that the pages' server is started with."""
    monkeypatch.setattr(LimitedProtocol, "arrives", 0.5)
    words = children.web({"HEARTH_HOST": "127.0.0.1", "HEARTH_PORT": 1}, {}, Path()).argv
    protocol, port = words[words.index("--http") + 1], free_ports(1)[0]
    server = uvicorn.Server(uvicorn.Config(slowly, port=port, http=protocol, lifespan="off", log_config=None))
    thread = threading.Thread(target=server.run)
    thread.start()
    until(lambda: server.started)
    yield port
    server.should_exit = True
    thread.join(60)


@pytest.mark.parametrize(
    "begun", [b"", b"\r\n", b"GET / HTTP/1.1\r\nHost:", b"POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\na"]
)
def test_who_never_asks_is_not_waited_for(pages: int, begun: bytes) -> None:
    with socket.create_connection(("127.0.0.1", pages), 15) as connection:
        connection.sendall(begun)
        with contextlib.suppress(ConnectionError):
            read(connection)


def test_headers_without_end_are_cut_off(pages: int) -> None:
    block = b"".join(b"a%d: b\r\n" % number for number in range(2000))
    with socket.create_connection(("127.0.0.1", pages), 15) as connection:
        end = time.monotonic() + 10
        with contextlib.suppress(OSError):
            connection.sendall(b"GET / HTTP/1.1\r\n")
            while time.monotonic() < end:
                connection.sendall(block)
            pytest.fail("They were taken without end.")


def test_an_answer_may_take_longer_than_a_request(pages: int) -> None:
    with socket.create_connection(("127.0.0.1", pages), 15) as connection:
        for _ in range(2):
            connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert read(connection).startswith(b"HTTP/1.1 200 ")
