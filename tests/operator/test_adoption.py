"""An operator that has just begun takes up servers that are there: few at once, because it reads every part of each."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from provisioning.operator.children import ALWAYS, KINDS
from provisioning.operator.ownership import Owner
from provisioning.operator.render import Document
from provisioning.operator.rendering import FIRST, Asked, Rendering
from provisioning.operator.store import Store
from tests.chart import values

COUNT = 5


class Chart:
    """A chart of what every server has."""

    async def render(self, *_words: Any, **_options: Any) -> list[Document]:
        return [
            Document(place.name, {"apiVersion": KINDS[place.kind].api_version, "kind": place.kind,
                                  "metadata": {"name": place.name}})
            for place in ALWAYS
        ]  # fmt: skip

    async def close(self) -> None:
        """Nothing runs."""


def live(store: Store, namespace: str) -> None:
    """Let the watches tell of a server's parts."""
    for place in ALWAYS:
        metadata = {"name": place.name, "namespace": namespace, "uid": "u", "resourceVersion": "1"}
        spec: dict[str, Any] = {"template": {"spec": {}}} if place.kind == "StatefulSet" else {}
        store.take(KINDS[place.kind], {"metadata": metadata, "spec": spec})


@pytest.mark.parametrize("there", [True, False])
def test_servers_that_are_there_already_share_memory_as_those_that_are_made(there: bool) -> None:
    async def run() -> int:
        store = Store(lambda _namespace, _urgent: None)
        rendering = Rendering(Chart(), store, budget=2 * FIRST)
        inside, go_on = [0], asyncio.Event()

        async def turn(namespace: str) -> None:
            if there:
                live(store, namespace)
            async with rendering.of(Owner(namespace, "synapse", "uid"), Asked(values.monolith())):
                inside[0] += 1
                await go_on.wait()

        turns = [asyncio.create_task(turn(f"hearth-{number}")) for number in range(COUNT)]
        async with asyncio.timeout(60):
            for _turn in iter(lambda: inside[0] + len(rendering._budget._line), COUNT):
                await asyncio.sleep(0)
        found = inside[0]
        go_on.set()
        await asyncio.gather(*turns)
        return found

    assert asyncio.run(run()) == 2
