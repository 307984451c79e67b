"""Asks the pods that bring servers back how far they are, over HTTP as backup agents are asked."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import aiohttp
import orjson

from provisioning.operator.diagnosis import RECOVERY_PODS, diagnose_pods
from provisioning.operator.kube.client import Client
from provisioning.operator.kube.errors import ApiError
from provisioning.operator.observed import Observed, Told
from provisioning.operator.probe import small, wary
from provisioning.operator.recovery import RUNNING, progress

AGAIN = 2.0  # seconds between two questions while a recovery runs
QUIET = 15.0  # seconds without an answer after which its pod is looked at, and between two looks
SILENT = Told(False)


class Recoveries:
    """Asks. `address` has `{namespace}` where the server's namespace belongs."""

    def __init__(self, address: str, client: Client) -> None:
        self._address, self._client = address, client
        self._session = wary(aiohttp.TCPConnector(limit=32, force_close=True))
        self._looked: dict[str, tuple[float, Told]] = {}
        """By server: when it was last heard of, or why not was looked for last, and what came of it."""

    async def close(self) -> None:
        """Close the connections."""
        await self._session.close()

    def forget(self, namespace: str) -> None:
        """Forget a server."""
        self._looked.pop(namespace, None)

    async def look(self, server: Mapping[str, Any], seen: Observed) -> Told | None:
        """Return what its pod says, or why it says nothing; None where nothing is to be asked. Never raises."""
        namespace = server["metadata"]["namespace"]
        now = progress(server["spec"], server.get("status") or {}, seen)
        if "recovery" not in server["spec"] or now is None or now["state"] != RUNNING:
            self.forget(namespace)
            return None
        if (found := await self._asked(namespace)) is not None:
            self._looked[namespace] = (time.monotonic(), SILENT)
            return Told(True, recovery=found)
        since, told = self._looked.setdefault(namespace, (time.monotonic(), SILENT))
        if time.monotonic() - since > QUIET:
            told = await self._why(namespace)
            self._looked[namespace] = (time.monotonic(), told)
        return told

    async def _asked(self, namespace: str) -> dict[str, Any] | None:
        url = self._address.format(namespace=namespace) + "/status"
        try:
            async with self._session.get(url, allow_redirects=False) as response:
                found = orjson.loads(await small(response))
                return found if response.status == 200 and isinstance(found, dict) else None
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError):
            return None

    async def _why(self, namespace: str) -> Told:
        try:
            fault = await diagnose_pods(self._client, namespace, RECOVERY_PODS)
        except ApiError:
            return SILENT
        return SILENT if fault is None else replace(SILENT, reason=fault.reason, message=fault.message)
