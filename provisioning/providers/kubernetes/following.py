"""The servers of a region as they are now, without reading them all each time.

A look asks only for what has changed since the one before: a watch from the last resource version that ends after a
second. Everything is read when nothing is known yet, when the API server has forgotten that version, and now and then
anyway, so that nothing that was missed stays missed.
https://kubernetes.io/docs/reference/using-api/api-concepts/#efficient-detection-of-changes
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, Generic, TypeVar

from provisioning.providers.kubernetes.client import Client, Refused

Kept = TypeVar("Kept")
READ_AGAIN_S = 600.0
FORBIDDEN_AGAIN_S = 600.0
"""Seconds after which an account that may not watch is tried again: until then each look reads everything."""


class Following(Generic[Kept]):
    """Keeps of each object what `keep` makes of it. May be used from many threads."""

    def __init__(self, client: Client, path: str, selector: str, keep: Callable[[dict[str, Any]], Kept]) -> None:
        self._client, self._path, self._selector, self._keep = client, path, selector, keep
        self._lock = threading.Lock()
        self._found: dict[str, Kept] = {}
        self._version, self._read, self._forbidden = "", 0.0, 0.0
        self.lists = 0
        """How often everything was read."""

    def now(self, *, patience: float) -> list[Kept]:
        """Return what is kept of every object that is there. `patience`: seconds for which a request is tried again."""
        with self._lock:
            due = not self._version or time.monotonic() - self._read > READ_AGAIN_S
            if due or not self._follow(patience):
                self._read_all(patience)
            return list(self._found.values())

    def _read_all(self, patience: float) -> None:
        objects, version = self._client.whole(self._path, patience=patience, labelSelector=self._selector)
        self._found = {_uid(each): self._keep(each) for each in objects}
        self._read = time.monotonic()
        may_not = self._forbidden and self._read - self._forbidden < FORBIDDEN_AGAIN_S
        self._version = "" if may_not else version
        self.lists += 1

    def _follow(self, patience: float) -> bool:
        """Take what has changed; False if everything must be read."""
        query = {"watch": "1", "allowWatchBookmarks": "true", "timeoutSeconds": "1", "labelSelector": self._selector}
        try:
            events = self._client.events(self._path, {**query, "resourceVersion": self._version}, patience=patience)
        except Refused as error:
            if error.status == 403:
                self._forbidden = time.monotonic()
            elif error.status != 410:
                raise
            self._version = ""
            return False
        return self._take(events)

    def _take(self, events: Iterable[dict[str, Any]]) -> bool:
        for event in events:
            kind, found = event["type"], event["object"]
            if kind == "ERROR":
                self._version = ""
                return False
            if kind == "DELETED":
                self._found.pop(_uid(found), None)
            elif kind != "BOOKMARK":
                self._found[_uid(found)] = self._keep(found)
            self._version = str(found["metadata"]["resourceVersion"])
        return True


def _uid(found: dict[str, Any]) -> str:
    return str(found["metadata"]["uid"])
