"""A listener in a thread, on either event loop, with an application that says who called."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import uvloop

from security.transport.certificates import Keeper
from security.transport.identities import CALLER
from security.transport.listener import App, Listener
from security.transport.tls import Material
from tests.bench.floor import free_ports

LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.new_event_loop,
    "uvloop": uvloop.new_event_loop,
}


class Given:
    """A source whose certificate a test sets; None has it fail."""

    def __init__(self, material: Material | None) -> None:
        self.material = material

    def look(self, present: Material | None) -> Material | None:
        if self.material is None:
            raise ConnectionError("The database does not answer.")
        return None if self.material == present else self.material


async def says(scope: Any, receive: Any, send: Any) -> None:
    """Answer with the caller that the scope names, and the headers."""
    caller = scope.get(CALLER)
    body = json.dumps({"caller": str(caller), "scheme": scope["scheme"], "client": scope["client"][0]}).encode()
    await send(
        {"type": "http.response.start", "status": 200, "headers": [(b"content-length", str(len(body)).encode())]}
    )
    await send({"type": "http.response.body", "body": body})


class Running:
    """What a test knows of the listener that runs for it."""

    def __init__(self, source: Any, app: App = says) -> None:
        self.port = free_ports(1)[0]
        self.source = source
        self.keeper = Keeper(source)
        self.listener = Listener(app, self.keeper, "127.0.0.1", self.port)

    @property
    def address(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    def plain(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), 10)

    def connect(self, context: ssl.SSLContext) -> ssl.SSLSocket:
        """Return a connection; in TLS 1.3 a refusal is first seen when one reads."""
        return context.wrap_socket(self.plain(), server_hostname="localhost")

    def ask(self, context: ssl.SSLContext, request: bytes = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n") -> bytes:
        with self.connect(context) as connection:
            connection.sendall(request)
            return read(connection)


def read(connection: socket.socket) -> bytes:
    """Return one answer with its body, or what came until the end."""
    said = b""
    while b"\r\n\r\n" not in said or len(said.partition(b"\r\n\r\n")[2]) < _announced(said):
        if not (more := connection.recv(65536)):
            break
        said += more
    return said


def _announced(said: bytes) -> int:
    for line in said.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return int(line.partition(b":")[2])
    return 0


@contextmanager
def running(source: Any, app: App = says, *, loop: str = "asyncio", wait: bool = True) -> Iterator[Running]:
    """Run a listener until the end of the block; with `wait` from when it listens."""
    made = Running(source, app)
    event_loop = LOOPS[loop]()

    thread = threading.Thread(target=event_loop.run_forever)
    thread.start()
    try:
        asyncio.run_coroutine_threadsafe(made.listener.start(), event_loop).result(20)
        until(lambda: made.listener.listens or not wait)
        yield made
    finally:
        asyncio.run_coroutine_threadsafe(made.listener.stop(), event_loop).result(20)
        asyncio.run_coroutine_threadsafe(_end_all(), event_loop).result(20)
        event_loop.call_soon_threadsafe(event_loop.stop)
        thread.join(60)
        event_loop.run_until_complete(event_loop.shutdown_default_executor())
        event_loop.close()


async def _end_all() -> None:
    """End what is still under way, as `asyncio.run` does for the web process."""
    left = asyncio.all_tasks() - {asyncio.current_task()}
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)


def until(condition: Callable[[], object], seconds: float = 60) -> None:
    """Wait until `condition()` holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)
