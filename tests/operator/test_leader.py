"""A change that has waited its turn, or is tried again, is not made when somebody else may act by then."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from provisioning.operator.children import KINDS, SERVERS
from provisioning.operator.kube.access import Access, Credentials
from provisioning.operator.kube.client import Client
from provisioning.operator.kube.errors import NotLeaderError

ASKED: list[str] = []


class Busy(BaseHTTPRequestHandler):
    """An API server that has no time for anybody."""

    def _answer(self) -> None:
        ASKED.append(self.command)
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.send_response(429)
        self.send_header("Retry-After", "1")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_PATCH = do_DELETE = do_GET = _answer  # noqa: N815 (http.server's names)

    def log_message(self, *_words: object) -> None:
        """Say nothing."""


@pytest.fixture
def address() -> Iterator[str]:
    ASKED.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), Busy) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


class Plain:
    """Credentials of nobody."""

    def __init__(self, address: str) -> None:
        self._address = address

    def files(self) -> list[Path]:
        return []

    def load(self) -> Credentials:
        return Credentials(self._address, None)


def _status(client: Client) -> Awaitable[object]:
    return client.apply(SERVERS, "hearth-1", "synapse", b"{}", subresource="status")


def _finalizers(client: Client) -> Awaitable[object]:
    return client.merge(SERVERS, "hearth-1", "synapse", {"metadata": {"finalizers": []}})


def _child(client: Client) -> Awaitable[object]:
    return client.apply(KINDS["StatefulSet"], "hearth-1", "synapse-main", b"{}")


def _owner(client: Client) -> Awaitable[object]:
    return client.own(KINDS["StatefulSet"], "hearth-1", "synapse-main", [], "1")


def _end(client: Client) -> Awaitable[object]:
    return client.delete(KINDS["StatefulSet"], "hearth-1", "synapse-main", uid="u")


@pytest.mark.parametrize("change", [_status, _finalizers, _child, _owner, _end])
def test_a_change_is_not_tried_again_once_the_lease_has_run_out(
    address: str, change: Callable[[Client], Awaitable[object]]
) -> None:
    async def run() -> None:
        async with Client(Access(Plain(address))) as client:
            client.may_write = lambda: not ASKED
            with pytest.raises(NotLeaderError):
                await change(client)

    asyncio.run(run())
    assert len(ASKED) == 1


def test_a_change_that_waits_its_turn_is_not_begun_once_the_lease_has_run_out(address: str) -> None:
    async def run() -> None:
        async with Client(Access(Plain(address)), in_flight=1) as client:
            async with client._places.take():
                waiting = asyncio.ensure_future(_child(client))
                await asyncio.sleep(0)
                client.may_write = lambda: False
            with pytest.raises(NotLeaderError):
                await waiting

    asyncio.run(run())
    assert not ASKED
