"""Kubernetes Events for people: what the operator did to a server, said once and not in a flood."""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
import time
import uuid
from collections.abc import Mapping
from typing import Any

from provisioning.operator.children import SERVERS
from provisioning.operator.kube.client import Client
from provisioning.operator.kube.errors import ApiError
from provisioning.operator.kube.kinds import EVENTS

log = logging.getLogger(__name__)

CONTROLLER = "hearth.host/operator"
AGAIN = 600.0  # seconds before the same is said again
BURST = 20  # of one server, before it is slowed down to one in
PERIOD = 60.0  # seconds
MOST = 2000  # sentences remembered
LONGEST = 1000  # characters, the API server's limit


class Notices:
    """Sends Events in the background, dropping repetitions."""

    def __init__(self, client: Client, identity: str) -> None:
        self._client = client
        self._identity = identity[:128]
        self._told: dict[tuple[str, str, str], float] = {}
        self._purses: dict[str, tuple[float, float]] = {}
        self._queue: asyncio.Queue[dict[str, Any]] = asyncio.Queue(MOST)
        self.dropped = 0

    def tell(self, server: Mapping[str, Any], reason: str, note: str, *, warn: bool = False) -> None:
        """Say something about a server."""
        namespace = server["metadata"]["namespace"]
        if not self._worth((namespace, reason, note)):
            return
        event = {
            "apiVersion": EVENTS.api_version,
            "kind": EVENTS.name,
            "metadata": {"name": f"{server['metadata']['name']}.{uuid.uuid4().hex[:16]}", "namespace": namespace},
            "eventTime": dt.datetime.now(dt.UTC).isoformat(timespec="microseconds").replace("+00:00", "Z"),
            "reportingController": CONTROLLER,
            "reportingInstance": self._identity,
            "action": "Reconcile",
            "type": "Warning" if warn else "Normal",
            "reason": reason,
            "note": note[:LONGEST],
            "regarding": {
                "apiVersion": SERVERS.api_version,
                "kind": SERVERS.name,
                "name": server["metadata"]["name"],
                "namespace": namespace,
                "uid": server["metadata"]["uid"],
            },
        }
        try:
            self._queue.put_nowait(event)
        except asyncio.QueueFull:
            self.dropped += 1

    def _worth(self, key: tuple[str, str, str]) -> bool:
        now = time.monotonic()
        if now - self._told.get(key, -AGAIN) < AGAIN:
            return False
        left, when = self._purses.get(key[0], (float(BURST), now))
        left = min(float(BURST), left + (now - when) / PERIOD)
        if left < 1:
            self.dropped += 1
            return False
        if len(self._told) >= MOST:
            self._told.pop(next(iter(self._told)))
        if len(self._purses) >= MOST:
            self._purses.pop(next(iter(self._purses)))
        self._told[key] = now
        self._purses[key[0]] = (left - 1, now)
        return True

    async def run(self) -> None:
        """Send what is to be said, until cancelled. An Event that can't be sent is no reason to do anything else."""
        while True:
            event = await self._queue.get()
            try:
                await self._client.create(EVENTS, event["metadata"]["namespace"], event)
            except ApiError as error:
                log.debug("an Event was not sent: %s", error)
            finally:
                self._queue.task_done()
