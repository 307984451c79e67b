"""Which kinds are watched: those every cluster has, and the others while their definitions are there."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from typing import Any

from provisioning.operator.children import BUILT_IN, KINDS, SERVERS
from provisioning.operator.kube.client import Client
from provisioning.operator.kube.kinds import DEFINITIONS, LEASES, Kind
from provisioning.operator.kube.lease import Lease
from provisioning.operator.kube.reflector import Reflector
from provisioning.operator.ownership import SELECTOR
from provisioning.operator.store import Store

log = logging.getLogger(__name__)


RENEWALS = (1.0, 10.0)  # seconds after which what is defined anew is read again
PULSE = 6.0  # seconds without a sign of our own lease, which is renewed every two, before the watches are suspected


class Pulse:
    """Sees our own lease being renewed, through a watch like all the others.

    Where something between us and the API server swallows what watches should bring, requests go on being answered,
    and the connections stay open: nothing but a watch that should have told something and did not shows it.
    """

    def __init__(self) -> None:
        self.last = time.monotonic()

    def seen(self, _kind: Kind, _found: Mapping[str, Any]) -> None:
        """Take note of a renewal."""
        self.last = time.monotonic()

    def gone(self, _kind: Kind, _namespace: str, _name: str, _version: int) -> None:
        """A lease that is deleted is made again."""

    def known(self, _kind: Kind) -> set[tuple[str, str]]:
        """Nothing is kept."""
        return set()


class Watching:
    """Runs the reflectors."""

    def __init__(self, client: Client, store: Store, lease: Lease) -> None:
        self._client = client
        self._lease = lease
        self._pulse = Pulse()
        self._store = store
        self._running: dict[str, tuple[Reflector, asyncio.Task[None]]] = {}
        store.defined, store.redefined, store.told = self._adjust, self._renew, self._told

    def start(self) -> None:
        """Start those that are always there."""
        self._start(DEFINITIONS, "")
        self._start(SERVERS, "")
        for kind in KINDS.values():
            if kind.group in BUILT_IN:
                self._start(kind, SELECTOR)
        fields = f"metadata.name={self._lease.name}"
        lease = Reflector(self._client, LEASES, self._pulse, fields=fields, namespace=self._lease.namespace)
        self._running[LEASES.name] = (lease, asyncio.create_task(lease.run(), name="watch of the lease"))

    def _renew(self, definition: str) -> None:
        """Read the MatrixServers again after their definition has changed.

        The API server goes on serving a watch by the definition of the time at which it was opened, so what is new in a
        server's spec is left out. How soon it takes the new one for other watches it does not say: hence twice.
        """
        if definition == SERVERS.definition:
            log.info("the definition of MatrixServers has changed: all are read again")
            for seconds in RENEWALS:
                asyncio.get_running_loop().call_later(seconds, self._running[SERVERS.name][0].renew)

    async def listen(self) -> None:
        """Open the watches again whenever they have gone deaf."""
        while True:
            await asyncio.sleep(PULSE / 4)
            renewed = self._lease.renewed_at
            if renewed - self._pulse.last > PULSE:
                log.warning("the lease is renewed and no watch tells of it: all watches are opened again")
                self._pulse.last = time.monotonic()
                self.reopen()

    async def synced(self) -> None:
        """Return once everything that is there has been seen."""
        await self._running[DEFINITIONS.name][0].synced.wait()
        for name in list(self._running):
            await self._running[name][0].synced.wait()

    def faults(self) -> list[str]:
        """Return a sentence for each watch that is dead."""
        return [
            f"the watch of {name} is dead: {reflector.trouble or 'it does nothing any more'}"
            for name, (reflector, task) in self._running.items()
            if task.done() or not reflector.alive()
        ]

    def reflectors(self) -> list[Reflector]:
        """Return all that run."""
        return [reflector for reflector, _task in self._running.values()]

    def reopen(self) -> None:
        """Open every watch again from where it is, after an outage that may have cut them without a word."""
        for reflector in self.reflectors():
            reflector.reopen()

    def kinds(self) -> list[Kind]:
        """Return the kinds of children that the cluster has."""
        return [kind for kind in KINDS.values() if kind.group in BUILT_IN or kind.definition in self._store.definitions]

    async def stop(self) -> None:
        """End all watches."""
        tasks = [task for _reflector, task in self._running.values()]
        while tasks:
            for task in tasks:
                task.cancel()
            # A library may swallow a cancellation that comes at a bad moment; nothing else ends a watch.
            _done, left = await asyncio.wait(tasks, timeout=1)
            tasks = list(left)

    def _start(self, kind: Kind, selector: str) -> None:
        reflector = Reflector(self._client, kind, self._store, selector=selector)
        whole = f"watch {kind.name}"
        self._running[kind.name] = (reflector, asyncio.create_task(reflector.run(), name=whole))

    def _told(self, kind: str) -> bool:
        held = self._running.get(kind)
        return held is not None and held[0].synced.is_set()

    def _adjust(self) -> None:
        for kind in KINDS.values():
            if kind.group in BUILT_IN:
                continue
            there, running = kind.definition in self._store.definitions, kind.name in self._running
            if there and not running:
                self._start(kind, SELECTOR)
            elif running and not there:
                log.warning("the definition of %s is gone; it is not watched any more", kind.name)
                self._running.pop(kind.name)[1].cancel()
                for namespace, name in self._store.known(kind):
                    self._store.gone(kind, namespace, name, 1 << 62)
