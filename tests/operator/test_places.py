"""Who sends the next request: first writes of changes before all else, and nobody is passed over for long."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from provisioning.operator.children import SERVERS
from provisioning.operator.differences import compare
from provisioning.operator.kube.access import Access, Credentials
from provisioning.operator.kube.client import Client
from provisioning.operator.kube.places import LONGEST_PAUSE, MANY, PATIENCE, PAUSE, SHARE, WHILE, Places
from provisioning.operator.metrics import Metrics
from provisioning.operator.notices import Notices
from provisioning.operator.ownership import Owner
from provisioning.operator.render import Document
from provisioning.operator.rendering import Asked, Rendering
from provisioning.operator.store import Store
from provisioning.operator.writing import Writer
from tests.chart import values

PARTS = (
    ("v1", "ConfigMap", "synapse"),
    ("apps/v1", "StatefulSet", "synapse-main"),
    ("networking.k8s.io/v1", "NetworkPolicy", "default-deny"),
)
WRITTEN: list[str] = []


class Order:
    """Requests that take their places one after the other and say who had one."""

    def __init__(self, places: Places) -> None:
        self._places = places
        self.had: list[str] = []
        self._asked: list[asyncio.Task[None]] = []

    async def ask(self, name: str, *, urgent: bool = False) -> asyncio.Task[None]:
        """Ask for a place; return once it stands in line."""
        task = asyncio.create_task(self._take(name, urgent=urgent))
        self._asked.append(task)
        await asyncio.sleep(0)
        return task

    async def _take(self, name: str, *, urgent: bool) -> None:
        async with self._places.take(urgent=urgent):
            self.had.append(name)

    async def all_had(self) -> list[str]:
        """Wait for all that asked; return them in the order in which they had a place."""
        await asyncio.gather(*self._asked, return_exceptions=True)
        return self.had


async def stands_in_line(places: Places, count: int) -> None:
    """Return once so many wait for a place."""
    async with asyncio.timeout(60):
        for _turn in iter(lambda: len(places), count):
            await asyncio.sleep(0)


async def line(clock: list[float], names: list[str]) -> list[str]:
    """Let all stand in line for one place, give it free after the patience of the patient; return the order."""
    places = Places(1, clock=lambda: clock[0])
    order = Order(places)
    async with places.take():
        for name in names:
            await order.ask(name, urgent=name.startswith("urgent"))
        clock[0] = clock[-1]
    return await order.all_had()


def test_the_urgent_come_first_and_each_lane_in_its_order() -> None:
    found = asyncio.run(line([0.0, PATIENCE], ["a", "b", "urgent-1", "c", "urgent-2"]))
    assert found == ["urgent-1", "urgent-2", "a", "b", "c"]


def test_who_was_passed_over_for_long_has_a_share_however_many_urgent_come() -> None:
    urgent = [f"urgent-{number}" for number in range(3 * SHARE)]
    found = asyncio.run(line([0.0, PATIENCE + 1], ["a", "b", *urgent]))
    assert found.index("a") < SHARE
    assert found.index("b") < 2 * SHARE
    assert [each for each in found if each in urgent] == urgent


def test_while_many_changes_come_the_patient_wait_though_places_are_free() -> None:
    async def run() -> tuple[list[str], list[str]]:
        clock = [0.0]
        places = Places(4, clock=lambda: clock[0])
        order = Order(places)
        for _each in range(MANY):
            async with places.take(urgent=True):
                pass
        patient = await order.ask("patient")
        await order.ask("urgent", urgent=True)
        await asyncio.sleep(2 * PAUSE)  # by the places' clock no time goes by
        before = list(order.had)
        clock[0] = PAUSE
        async with asyncio.timeout(60):
            await patient
        return before, order.had

    assert asyncio.run(run()) == (["urgent"], ["urgent", "patient"])


@pytest.mark.parametrize(("between", "waits"), [(0.0, False), (0.9 * WHILE / MANY, True), (1.1 * WHILE / MANY, False)])
def test_changes_that_come_slowly_are_waited_for_longer_and_rare_ones_not_at_all(between: float, waits: bool) -> None:
    async def run() -> list[str]:
        clock = [0.0]
        places = Places(4, clock=lambda: clock[0])
        order = Order(places)
        for number in range(MANY):
            clock[0] = number * between
            async with places.take(urgent=True):
                pass
        clock[0] += PAUSE
        patient = await order.ask("patient")
        before = list(order.had)
        clock[0] += LONGEST_PAUSE
        async with asyncio.timeout(60):
            await patient
        return before

    assert asyncio.run(run()) == ([] if waits else ["patient"])


def test_who_was_kept_waiting_for_long_is_not_kept_any_more() -> None:
    async def run() -> None:
        clock = [0.0]
        places = Places(4, clock=lambda: clock[0])
        order = Order(places)
        for _each in range(MANY):
            async with places.take(urgent=True):
                pass
        patient = await order.ask("patient")
        clock[0] = PATIENCE + PAUSE
        for _each in range(MANY):
            async with places.take(urgent=True):
                pass
        async with asyncio.timeout(60):
            await patient

    asyncio.run(run())


def test_a_few_changes_keep_nobody_waiting() -> None:
    async def run() -> list[str]:
        places = Places(4, clock=lambda: 0.0)
        order = Order(places)
        for _each in range(MANY - 1):
            async with places.take(urgent=True):
                pass
        await order.ask("patient")
        return list(order.had)

    assert asyncio.run(run()) == ["patient"]


def test_no_more_than_so_many_have_a_place_and_none_is_lost_with_who_gave_up() -> None:
    async def run() -> tuple[int, list[str]]:
        places, most = Places(2), [0, 0]

        async def work() -> None:
            async with places.take(urgent=most[1] % 3 == 0):
                most[0] += 1
                most[1] = max(most)
                await asyncio.sleep(0)
                most[0] -= 1

        await asyncio.gather(*(work() for _each in range(20)))
        order = Order(places)
        async with contextlib.AsyncExitStack() as stack:
            for _each in range(2):
                await stack.enter_async_context(places.take())
            waiting = await order.ask("gave up while it stood in line")
            given = await order.ask("gave up when it was its turn", urgent=True)
            waiting.cancel()
            await asyncio.sleep(0)
        given.cancel()
        for name in ("a", "b"):
            await order.ask(name)
        return most[1], await order.all_had()

    assert asyncio.run(run()) == (2, ["a", "b"])


class Taking(BaseHTTPRequestHandler):
    """An API server that takes whatever is applied."""

    def _answer(self) -> None:
        found = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        metadata = found["metadata"]
        WRITTEN.append(f"{found['kind']} of {metadata['namespace']}")
        body = json.dumps({"metadata": {**metadata, "uid": "u", "resourceVersion": "1"}}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_PATCH = _answer  # noqa: N815 (http.server's name)

    def log_message(self, *_words: object) -> None:
        """Say nothing."""


@pytest.fixture
def address() -> Iterator[str]:
    WRITTEN.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), Taking) as server:
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


class Chart:
    """A chart of three parts."""

    async def render(self, namespace: str, *_words: Any, **_options: Any) -> list[Document]:
        return [
            Document(name, {"apiVersion": version, "kind": kind, "metadata": {"name": name, "namespace": namespace}})
            for version, kind, name in PARTS
        ]

    async def close(self) -> None:
        """Nothing runs."""


@pytest.mark.parametrize("urgent", [True, False])
def test_the_first_write_of_a_change_comes_before_what_others_wrote_earlier(address: str, urgent: bool) -> None:
    async def change(client: Client, store: Store) -> None:
        writer = Writer(client, store, Notices(client, "o"), Metrics(), leads=lambda: True, width=lambda: 1)
        owner, asked = Owner("changed", "synapse", "uid"), Asked(values.monolith())
        async with Rendering(Chart(), store).of(owner, asked) as rendered:
            found = compare(rendered.wanted, {}, owner="uid", untouched=rendered.untouched)
            await writer.carry_out({}, owner, found, rendered, urgent=urgent)

    async def run() -> None:
        async with Client(Access(Plain(address)), in_flight=1) as client:
            async with client._places.take():
                body = json.dumps({"kind": "Status", "metadata": {"namespace": "other"}}).encode()
                others = [asyncio.ensure_future(client.apply(SERVERS, "other", "synapse", body)) for _each in range(3)]
                await stands_in_line(client._places, 3)
                changed = asyncio.ensure_future(change(client, Store(lambda _namespace, _urgent: None)))
                await stands_in_line(client._places, 4)
            await asyncio.gather(*others, changed)

    asyncio.run(run())
    first, *rest = [f"{kind} of changed" for _version, kind, _name in PARTS]
    others = ["Status of other"] * 3
    assert [first, *others, *rest] == WRITTEN if urgent else [*others, first, *rest] == WRITTEN
