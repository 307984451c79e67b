"""Who of several operators acts: the one that holds a Lease and renews it in time.

Times on the Lease are other machines' clocks, so they are never compared with ours: a lease has run out when *we* have
seen it unchanged for its whole duration, by our own monotonic clock.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import logging
import time
from collections.abc import Callable
from typing import Any

from provisioning.operator.kube.client import Client
from provisioning.operator.kube.errors import ApiError
from provisioning.operator.kube.kinds import LEASES

log = logging.getLogger(__name__)


class Lease:
    """One Lease. `lasts`: seconds after which others may take it; we give up a third earlier; `renew`: our period."""

    def __init__(
        self, client: Client, namespace: str, name: str, identity: str, *, lasts: float = 15.0, renew: float = 2.0
    ) -> None:
        self.identity, self.namespace, self.name = identity, namespace, name
        self.renewed_at = 0.0
        """When the API server took our last renewal, by the monotonic clock."""
        self._client = client
        self._path = LEASES.path(namespace, name)
        self._collection = LEASES.path(namespace)
        self._lasts, self._renew = lasts, renew
        self._until = 0.0
        self._seen: tuple[str, float] = ("", 0.0)
        self._held: dict[str, Any] = {}
        self.answered = Callbacks()
        """Called once the API server answers again after it did not."""
        self._silent = False
        self._taken = False

    def held(self) -> bool:
        """Say whether we may write now."""
        return time.monotonic() < self._until

    async def acquire(self) -> None:
        """Return once we hold it."""
        while True:
            if await self._try():
                return
            await asyncio.sleep(self._renew)

    async def keep(self) -> None:
        """Renew until somebody else holds it; then return.

        While the API server does not answer nobody can take it, so there is nothing to give up but the right to write.
        """
        self._taken = False
        while not self._taken:
            await asyncio.sleep(self._renew)
            await self._try()

    async def release(self) -> None:
        """Let the next one take it at once."""
        if not self.held():
            return
        self._until = 0.0
        spec = self._held.get("spec", {}) | {"holderIdentity": "", "leaseDurationSeconds": 1}
        with contextlib.suppress(ApiError, TimeoutError):
            await self._client.lease("PUT", self._path, self._held | {"spec": spec})

    async def _try(self) -> bool:
        begun = time.monotonic()
        try:
            self._held = await self._renewed()
        except (ApiError, TimeoutError) as error:
            status = error.status if isinstance(error, ApiError) else 0
            if status == 409:  # somebody else was quicker
                self._held = {}
            elif status in {0, 429} or status >= 500:
                self._silent = True
            log.debug("the lease was not renewed: %s", error)
            return False
        if self._silent:
            self._silent = False
            self.answered()
        if not self._held:
            return False
        self._until = begun + self._lasts * 2 / 3
        self.renewed_at = time.monotonic()
        return True

    async def _renewed(self) -> dict[str, Any]:
        """Write the lease, if it is ours to write, and return it; empty when somebody else holds it."""
        if self.held() and self._held:
            found = self._held
        else:
            try:
                found = await self._client.lease("GET", self._path)
            except ApiError as error:
                if error.status != 404:
                    raise
                return await self._client.lease("POST", self._collection, self._body({}))
        if not self._free(found):
            self._until, self._taken = 0.0, True
            return {}
        return await self._client.lease("PUT", self._path, self._body(found))

    def _free(self, found: dict[str, Any]) -> bool:
        spec = found.get("spec") or {}
        holder = spec.get("holderIdentity")
        if not holder or holder == self.identity:
            return True
        version = found["metadata"]["resourceVersion"]
        if self._seen[0] != version:
            self._seen = (version, time.monotonic())
        return time.monotonic() - self._seen[1] > float(spec.get("leaseDurationSeconds") or self._lasts)

    def _body(self, found: dict[str, Any]) -> dict[str, Any]:
        now = dt.datetime.now(dt.UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        spec = found.get("spec") or {}
        ours = spec.get("holderIdentity") == self.identity
        changes = int(spec.get("leaseTransitions") or 0) + (0 if ours or not found else 1)
        return {
            "apiVersion": LEASES.api_version,
            "kind": LEASES.name,
            # With the version we read: of two that try, one is refused.
            "metadata": found.get("metadata") or {"name": self.name},
            "spec": {
                "holderIdentity": self.identity,
                "leaseDurationSeconds": round(self._lasts),
                "acquireTime": spec.get("acquireTime") if ours else now,
                "renewTime": now,
                "leaseTransitions": changes,
            },
        }


class Callbacks:
    """Those who want to be told, and the telling."""

    def __init__(self) -> None:
        self._all: list[Callable[[], None]] = []

    def add(self, each: Callable[[], None]) -> None:
        """Tell this one too."""
        self._all.append(each)

    def __call__(self) -> None:
        for each in self._all:
            each()
