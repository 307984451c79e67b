"""Keeps what we know of one kind in step with the API server, by one watch that is opened again whenever it ends.

The first watch streams what is there (`sendInitialEvents`) and ends that with a bookmark, so there is no LIST at all;
servers without that get one LIST. Later watches go on from the last resource version. Only when the server no longer
knows that version (410) is everything streamed again. Nothing that a watch can say or do ends the reflector: an error
of any kind is met with a back-off that is jittered and short enough to be back within seconds.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Mapping
from typing import Any, Protocol

import aiohttp
import orjson

from provisioning.operator.kube.client import METADATA, METADATA_LIST, WHOLE, Client
from provisioning.operator.kube.errors import ApiError, from_status, unanswered
from provisioning.operator.kube.kinds import Kind

log = logging.getLogger(__name__)

SILENCE = 100.0  # seconds; a bookmark comes every minute, so a longer silence is a connection that is only half open
LASTS = (2400, 3000)  # seconds a watch is asked to last, so that not all end at once
LONGEST_PAUSE = 4.0
HUNG = SILENCE + LONGEST_PAUSE + 60  # seconds without an answer or a try: it is stuck
PATIENCE = 3  # errors in a row from the same resource version before everything is streamed anew
INITIAL_END = "k8s.io/initial-events-end"


class Sink(Protocol):
    """Takes what a watch shows. Never blocks."""

    def seen(self, kind: Kind, found: Mapping[str, Any]) -> None:
        """Take an object as it is now."""

    def gone(self, kind: Kind, namespace: str, name: str, version: int) -> None:
        """Take note that an object is deleted."""

    def known(self, kind: Kind) -> set[tuple[str, str]]:
        """Return (namespace, name) of every object of that kind that was seen and not gone."""


class Reflector:
    """The watch of one kind, over all namespaces or in one."""

    def __init__(
        self, client: Client, kind: Kind, sink: Sink, *, selector: str = "", fields: str = "", namespace: str = ""
    ) -> None:
        self.kind = kind
        self.synced = asyncio.Event()
        self.relists = 0
        """How often everything was streamed or listed."""
        self.reopened = 0
        """How often the watch was opened from a known resource version."""
        self.trouble = ""
        """What the last error said, empty while the watch is open."""
        self._path = kind.path(namespace)
        self._client = client
        self._sink = sink
        self._options = {key: text for key, text in (("labelSelector", selector), ("fieldSelector", fields)) if text}
        self._version = ""
        self._faults = 0
        self._streams = True
        self._anew = False
        self._contact = time.monotonic()
        self._response: aiohttp.ClientResponse | None = None
        self._seen: set[tuple[str, str]] | None = None

    def alive(self) -> bool:
        """Say whether it heard from the API server, or at least tried to, as lately as it should have."""
        return time.monotonic() - self._contact < HUNG

    def reopen(self) -> None:
        """Open the watch again from where it is: the connection may have died without a word."""
        if self._response is not None:
            self._response.close()

    def renew(self) -> None:
        """Have everything told again."""
        self._anew = True
        self.reopen()

    async def run(self) -> None:
        """Watch until cancelled."""
        while True:
            self._contact = time.monotonic()
            pause = 0.0
            try:
                await self._once()
            except ApiError as error:
                pause = self._after(error)
            except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
                pause = self._after(unanswered(error))
            except Exception as error:
                log.exception("the watch of %s brought what can't be read", self.kind)
                pause = self._after(unanswered(error))
            await asyncio.sleep(pause)

    def _after(self, error: ApiError) -> float:
        self.trouble = str(error)
        self._faults += 1
        log.info("the watch of %s ended: %s", self.kind, error)
        if error.expired or (error.status not in {0, 401, 429} and self._faults % PATIENCE == 0):
            self._version = ""
        if error.status == 422 and "sendInitialEvents" in error.message:
            self._streams = False
            return 0.0
        most = min(LONGEST_PAUSE, 0.1 * 2.0 ** min(self._faults, 10))
        return max(min(error.retry_after, LONGEST_PAUSE), most) * random.uniform(0.5, 1.0)  # noqa: S311 (spreads load)

    async def _once(self) -> None:
        if self._anew:
            self._version, self._anew = "", False
        if self._version:
            self.reopened += 1
            await self._watch({"resourceVersion": self._version})
            return
        self._seen = set()
        if self._streams:
            await self._watch({"sendInitialEvents": "true", "resourceVersionMatch": "NotOlderThan"})
        else:
            await self._list()

    async def _list(self) -> None:
        accept = WHOLE if self.kind.whole or self.kind.look else METADATA_LIST
        found = await self._client.list(self.kind, selector=self._options.get("labelSelector", ""), accept=accept)
        for each in found.get("items") or ():
            self._take(each)
        self._complete(str(found["metadata"]["resourceVersion"]))

    async def _watch(self, options: Mapping[str, str]) -> None:
        low, high = LASTS
        seconds = str(random.randint(low, high))  # noqa: S311 (spreads load)
        params = {"watch": "1", "allowWatchBookmarks": "true", "timeoutSeconds": seconds, **options, **self._options}
        async with self._client.stream(
            self._path, params, WHOLE if self.kind.whole or self.kind.look else METADATA
        ) as response:
            self._response = response
            try:
                await self._read(response)
            finally:
                self._response = None
        if self._seen is not None and not self._version:
            raise unanswered(ConnectionError("the watch ended before it had told everything"))

    async def _read(self, response: aiohttp.ClientResponse) -> None:
        rest = b""
        while True:
            # Not wait_for: before Python 3.12 it can swallow a cancellation, and then nothing ends this any more.
            async with asyncio.timeout(SILENCE):
                chunk = await response.content.readany()
            if not chunk:
                if not response.content.at_eof():
                    continue
                return
            self._contact = time.monotonic()
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                if line:
                    self._event(orjson.loads(line))

    def _event(self, event: Mapping[str, Any]) -> None:
        kind, found = event["type"], event["object"]
        if kind == "ERROR":
            raise from_status(found)
        self._faults, self.trouble = 0, ""
        metadata = found["metadata"]
        if kind == "BOOKMARK":
            if self._seen is not None:
                if (metadata.get("annotations") or {}).get(INITIAL_END) == "true":
                    self._complete(metadata["resourceVersion"])
                return
        elif kind == "DELETED":
            place = (metadata.get("namespace", ""), metadata["name"])
            self._sink.gone(self.kind, *place, int(metadata["resourceVersion"]))
            if self._seen is not None:
                self._seen.discard(place)
        else:
            self._take(found)
        if self._seen is None:
            self._version = metadata["resourceVersion"]

    def _take(self, found: Mapping[str, Any]) -> None:
        metadata = found["metadata"]
        if self._seen is not None:
            self._seen.add((metadata.get("namespace", ""), metadata["name"]))
        try:
            self._sink.seen(self.kind, found)
        except Exception:
            # Read again it would be no better, and all others would wait for it.
            log.exception("%s %s/%s can't be understood", self.kind, metadata.get("namespace", ""), metadata["name"])

    def _complete(self, version: str) -> None:
        for namespace, name in self._sink.known(self.kind) - (self._seen or set()):
            self._sink.gone(self.kind, namespace, name, int(version))
        self._seen = None
        self.relists += 1
        self._version = version
        self._faults, self.trouble = 0, ""
        self.synced.set()
