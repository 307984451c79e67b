"""A fleet of MatrixServers for measurements: made, watched and changed over one API server, in asyncio."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from provisioning.operator.children import SERVERS
from provisioning.operator.kube.access import find
from provisioning.operator.kube.client import Client
from provisioning.operator.kube.kinds import Kind
from provisioning.operator.kube.reflector import Reflector
from provisioning.operator.reconcile import FINALIZER
from tests.chart import values
from tests.operator.homeservers import KEY
from tests.operator.servers import ISSUER, LABELS

NAMESPACES = Kind("", "v1", "Namespace", "namespaces", namespaced=False)


def spec(number: int) -> dict[str, Any]:
    """Return one server: the smallest that Hearth sells, with its database cluster, on the test cluster's classes."""
    return values.monolith(
        publicHost=f"matrix-{number}.alice.example",
        database={"cluster": {"storage": {"class": "test"}}},
        routing={"certificate": {"issuerRef": ISSUER}},
        secret={"signingKeyId": KEY},
    )


def made(number: int, namespace: str) -> dict[str, Any]:
    """Return a whole MatrixServer as Hearth makes it."""
    whole = values.matrix_server(spec(number), namespace)
    return {**whole, "metadata": {**whole["metadata"], "finalizers": [FINALIZER]}}


async def until(reached: Callable[[], object], *, every: float = 0.05, seconds: float = 900) -> None:
    """Return once this is true."""
    async with asyncio.timeout(seconds):
        while True:
            if reached():
                return
            await asyncio.sleep(every)


class Fleet:
    """Servers on one cluster."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.ready: dict[str, float] = {}
        """When each namespace's server was first seen Ready and settled in its present generation, by perf_counter."""
        self.first: dict[str, float] = {}
        """When a child of each namespace was first seen to be written since `first` was emptied."""
        self.last = 0.0
        """When the last child was seen to be written."""
        self.unsettled: set[str] = set()
        """Servers that are not, as far as is seen, Ready and settled in their present generation."""
        self.told = 0.0
        """When a server was last seen to change, its status included."""
        self.version: dict[tuple[str, str, str], int] = {}

    # What the reflectors call.

    def seen(self, kind: Kind, found: Mapping[str, Any]) -> None:
        """Take note of an object."""
        meta, now = found["metadata"], time.perf_counter()
        namespace = meta["namespace"]
        if kind is SERVERS:
            conditions = {each["type"]: each for each in (found.get("status") or {}).get("conditions") or ()}
            ready, under_way = conditions.get("Ready", {}), conditions.get("Progressing", {})
            settled = ready.get("status") == "True" and under_way.get("status") == "False"
            settled = settled and ready.get("observedGeneration") == meta["generation"]
            self.told = now
            (self.unsettled.discard if settled else self.unsettled.add)(namespace)
            if settled:
                self.ready.setdefault(namespace, now)
            return
        key = (kind.name, namespace, meta["name"])
        applied = max(
            (hash(json.dumps(each)) for each in meta.get("managedFields") or () if each["operation"] == "Apply"),
            default=0,
        )
        if self.version.get(key) != applied:
            self.version[key] = applied
            self.first.setdefault(namespace, now)
            self.last = now

    def gone(self, _kind: Kind, _namespace: str, _name: str, _version: int) -> None:
        """Nothing goes here."""

    def known(self, _kind: Kind) -> set[tuple[str, str]]:
        """Nothing is forgotten here."""
        return set()

    async def make_namespaces(self, count: int, *, labels: bool = True) -> list[str]:
        """Make namespaces as Hearth makes them, and wait for their default accounts."""
        names = [f"hearth-{uuid.uuid4()}" for _each in range(count)]
        marks = {**LABELS, "hearth.host/organisation": values.ORGANISATION} if labels else {}
        await self.together(
            self.client.create(NAMESPACES, "", {
                "apiVersion": "v1", "kind": "Namespace",
                "metadata": {"name": name, "labels": {**marks, "hearth.host/server": name.removeprefix("hearth-")}},
            }) for name in names
        )  # fmt: skip
        return names

    async def make_servers(self, names: Iterable[str]) -> None:
        """Make a MatrixServer in each of these namespaces, as Hearth does."""
        await self.together(self.client.create(SERVERS, name, made(number, name)) for number, name in enumerate(names))

    async def change(self, name: str, users: int) -> float:
        """Change a server's limit; return when the API server had taken it, by perf_counter."""
        await self.client.merge(SERVERS, name, "synapse", {"spec": {"limits": {"maxUsers": users}}})
        return time.perf_counter()

    @staticmethod
    async def together(all_of: Iterable[Any]) -> None:
        """Wait for all of these."""
        await asyncio.gather(*all_of)

    async def until_ready(self, names: Collection[str], *, seconds: float = 900) -> float:
        """Wait until all are Ready; return when the last was, by perf_counter."""
        await until(lambda: not set(names) - self.ready.keys(), seconds=seconds)
        return max(self.ready[name] for name in names)

    async def quiet(self, *, seconds: float = 3.0) -> None:
        """Wait until no child has been written for a while."""
        await until(lambda: time.perf_counter() - self.last >= seconds)

    @asynccontextmanager
    async def watching(self, kinds: Iterable[Kind], selector: str = "") -> AsyncIterator[None]:
        """Watch objects of these kinds, beginning with all that are there; of children only the metadata."""
        bare = [
            kind if kind is SERVERS else Kind(kind.group, kind.version, kind.name, kind.plural, kind.namespaced)
            for kind in kinds
        ]
        reflectors = [Reflector(self.client, kind, self, selector=selector) for kind in bare]
        tasks = [asyncio.create_task(each.run()) for each in reflectors]
        try:
            for each in reflectors:
                await each.synced.wait()
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


@asynccontextmanager
async def watched(kubeconfig: Path) -> AsyncIterator[Fleet]:
    """Give a fleet whose servers are watched."""
    async with Client(find(str(kubeconfig))) as client:
        fleet = Fleet(client)
        async with fleet.watching([SERVERS]):
            yield fleet
