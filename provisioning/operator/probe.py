"""The protocol checks: whether a homeserver really answers, through its Service. (`/health` always says OK.)"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import aiohttp

from provisioning.operator.observed import Probe

LIMIT = 5.0  # seconds for each question
LARGEST = 1 << 20  # bytes of an answer

VERSIONS = "/_matrix/client/versions"
KEYS = "/_matrix/key/v2/server"
RELEASE = "/_matrix/federation/v1/version"


class NotAnswering(Exception):
    """A check failed; the text is for a person."""


class Prober:
    """Asks homeservers. `address` has `{namespace}` where the server's namespace belongs."""

    def __init__(self, address: str, *, at_once: int = 32) -> None:
        self._address = address
        self._places = asyncio.Semaphore(at_once)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, force_close=True), timeout=aiohttp.ClientTimeout(total=LIMIT)
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._session.close()

    async def ask(self, server: Mapping[str, Any]) -> Probe:
        """Ask one server."""
        base = self._address.format(namespace=server["metadata"]["namespace"])
        name = server["spec"]["serverName"]
        async with self._places:
            try:
                versions = await self._get(base + VERSIONS)
                if not versions.get("versions"):
                    raise NotAnswering(f"{VERSIONS} names no version of the protocol")
                key = self._key(await self._get(base + KEYS), name)
                release = await self._get(base + RELEASE, optional=True)
            except NotAnswering as error:
                return Probe(False, message=f"The server runs but does not answer as it should: {error}.")
        version = str((release.get("server") or {}).get("version") or server["spec"]["synapse"]["version"])
        return Probe(True, version.split(" ", maxsplit=1)[0], key)

    def _key(self, found: Mapping[str, Any], name: str) -> str:
        if found.get("server_name") != name:
            raise NotAnswering(f"{KEYS} is signed for {found.get('server_name')!r}, not for {name!r}")
        keys = sorted(found.get("verify_keys") or {})
        if not keys:
            raise NotAnswering(f"{KEYS} has no key")
        return str(keys[0])

    async def _get(self, url: str, *, optional: bool = False) -> dict[str, Any]:
        try:
            async with self._session.get(url) as response:
                if response.status != 200:
                    if optional:
                        return {}
                    raise NotAnswering(f"{url} answers {response.status}")
                found = await response.json(content_type=None) if await _small(response) else None
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            raise NotAnswering(f"{url} can't be reached ({type(error).__name__})") from error
        if not isinstance(found, dict):
            raise NotAnswering(f"{url} gives no object")
        return found


async def _small(response: aiohttp.ClientResponse) -> bool:
    return response.content_length is None or response.content_length <= LARGEST
