"""The protocol checks: whether a homeserver really answers, through its Service. (`/health` always says OK.)"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import aiohttp
import orjson

from provisioning.operator.observed import Probe

LIMIT = 5.0  # seconds for each question
KEPT = 1.0  # seconds a connection is kept after an answer: long enough for the next question of the same look
LARGEST = 1 << 20  # bytes of an answer
LONGEST = 100  # characters of what a status takes over from an answer

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
        self._session = wary(aiohttp.TCPConnector(limit=0, keepalive_timeout=KEPT))

    async def close(self) -> None:
        """Close the connections."""
        await self._session.close()

    async def ask(self, server: Mapping[str, Any]) -> Probe:
        """Ask one server."""
        base = self._address.format(namespace=server["metadata"]["namespace"])
        async with self._places:
            try:
                versions = await self._get(base + VERSIONS)
                if not versions.get("versions"):
                    raise NotAnswering(f"{VERSIONS} names no version of the protocol")
                key = self._key(await self._get(base + KEYS), server["spec"])
                # The last one: the next look begins anew, lest a process that is ending answer for its successor.
                release = await self._get(base + RELEASE, optional=True, headers={"Connection": "close"})
            except NotAnswering as error:
                return Probe(False, message=f"The server runs but does not answer as it should: {error}.")
        version = str(_object(release.get("server")).get("version") or server["spec"]["synapse"]["version"])
        return Probe(True, version.split(" ", maxsplit=1)[0][:LONGEST], key)

    @staticmethod
    def _key(found: Mapping[str, Any], spec: Mapping[str, Any]) -> str:
        name, expected = spec["serverName"], (spec.get("secret") or {}).get("signingKeyId")
        if found.get("server_name") != name:
            raise NotAnswering(f"{KEYS} is signed for {str(found.get('server_name'))[:LONGEST]!r}, not for {name!r}")
        keys = sorted(_object(found.get("verify_keys")))
        if not keys:
            raise NotAnswering(f"{KEYS} has no key")
        # A server may have several; it is the right one as long as its own is among them.
        return str(expected if expected in keys else keys[0])[:LONGEST]

    async def _get(
        self, url: str, *, optional: bool = False, headers: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        try:
            async with self._session.get(url, allow_redirects=False, headers=headers) as response:
                if response.status != 200:
                    if optional:
                        return {}
                    raise NotAnswering(f"{url} answers {response.status}")
                found = orjson.loads(await small(response))
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            raise NotAnswering(f"{url} can't be reached ({type(error).__name__})") from error
        if not isinstance(found, dict):
            raise NotAnswering(f"{url} gives no object")
        return found


def _object(found: Any) -> Mapping[str, Any]:
    return found if isinstance(found, Mapping) else {}


def wary(connector: aiohttp.TCPConnector) -> aiohttp.ClientSession:
    """Return a session for questions to a server that somebody may have broken into; it may answer anything.

    No answer comes without end (read it with `small`) or packed so that little becomes much. That it names another
    address to ask instead is for each question to refuse: `allow_redirects=False`.
    """
    return aiohttp.ClientSession(
        connector=connector,
        timeout=aiohttp.ClientTimeout(total=LIMIT),
        headers={"Accept-Encoding": "identity"},
        auto_decompress=False,
    )


async def small(response: aiohttp.ClientResponse) -> bytes:
    """Return an answer that is no longer than one may be, or raise `ValueError`."""
    body = bytearray()
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) > LARGEST:
            raise ValueError("it answers without end")
    return bytes(body)
