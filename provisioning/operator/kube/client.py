"""Requests to the API server: bounded, tried again where that is safe, counted."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import aiohttp
import orjson

from provisioning.operator.kube.access import Access
from provisioning.operator.kube.errors import ApiError, NotLeaderError, from_answer, unanswered
from provisioning.operator.kube.kinds import Kind
from provisioning.operator.kube.places import Places

MANAGER = "hearth-operator"
METADATA = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
METADATA_LIST = METADATA.replace("PartialObjectMetadata", "PartialObjectMetadataList")
WHOLE = "application/json"
APPLY = "application/apply-patch+yaml"
TRIES = 4
LONGEST_WAIT = 5.0  # seconds; a longer wish of the server is a matter for the caller's back-off
TIMEOUT = 30.0
OPENING = 20.0

# A dead peer is noticed by the kernel within about nine seconds, on idle watches too.
KEEPALIVE = ((socket.TCP_KEEPIDLE, 3), (socket.TCP_KEEPINTVL, 2), (socket.TCP_KEEPCNT, 3))
UNACKNOWLEDGED = 10_000  # milliseconds


def _connected(address: Any) -> socket.socket:
    family, kind, protocol, _name, _where = address
    made = socket.socket(family, kind, protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in KEEPALIVE:
        made.setsockopt(socket.IPPROTO_TCP, option, value)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNACKNOWLEDGED)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return made


class Client:
    """One connection pool to one API server. At most `in_flight` ordinary requests at once, the urgent ones first."""

    def __init__(self, access: Access, *, in_flight: int = 16) -> None:
        self._access = access
        self._places = Places(in_flight)
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=60, socket_factory=_connected)
        self._session = aiohttp.ClientSession(connector=connector, auto_decompress=True)
        self.sent: Counter[str] = Counter()
        """How many requests were sent, by verb: get, list, watch, patch, create, delete, lease."""
        self.may_write: Callable[[], bool] = lambda: True
        """Asked right before each try of a change: the lease may have run out while it waited its turn."""

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self._session.close()

    async def apply(
        self,
        kind: Kind,
        namespace: str,
        name: str,
        body: bytes,
        *,
        subresource: str = "",
        accept: str = METADATA,
        urgent: bool = False,
    ) -> dict[str, Any]:
        """Apply on the server (JSON is YAML), taking fields from whoever else set them; return what is there now."""
        path = kind.path(namespace, name, subresource)
        options = {"fieldManager": MANAGER, "force": "true", "fieldValidation": "Strict"}
        return await self._json(
            "patch", "PATCH", path, urgent=urgent, params=options, body=body, content=APPLY, accept=accept
        )

    async def merge(self, kind: Kind, namespace: str, name: str, change: Any) -> dict[str, Any]:
        """Patch by JSON merge."""
        return await self._json(
            "patch",
            "PATCH",
            kind.path(namespace, name),
            params={"fieldManager": MANAGER},
            body=orjson.dumps(change),
            content="application/merge-patch+json",
            accept=METADATA,
        )

    async def own(self, kind: Kind, namespace: str, name: str, fields: Any, version: str) -> dict[str, Any]:
        """Set whose each field is (`managedFields`), if the object is still the one with that resource version."""
        change = [
            {"op": "replace", "path": "/metadata/managedFields", "value": fields},
            {"op": "replace", "path": "/metadata/resourceVersion", "value": version},
        ]
        return await self._json(
            "patch",
            "PATCH",
            kind.path(namespace, name),
            body=orjson.dumps(change),
            content="application/json-patch+json",
            accept=METADATA,
        )

    async def create(self, kind: Kind, namespace: str, body: Any) -> dict[str, Any]:
        """Make a new object."""
        data = orjson.dumps(body)
        return await self._json("create", "POST", kind.path(namespace), body=data, content=WHOLE)

    async def delete(self, kind: Kind, namespace: str, name: str, *, uid: str = "", propagation: str = "") -> None:
        """Delete one object, only if it is still the one with that `uid`. What is not there is deleted already."""
        options: dict[str, Any] = {"kind": "DeleteOptions", "apiVersion": "v1"}
        options |= {"preconditions": {"uid": uid}} if uid else {}
        options |= {"propagationPolicy": propagation} if propagation else {}
        body = orjson.dumps(options)
        try:
            await self._json("delete", "DELETE", kind.path(namespace, name), body=body, content=WHOLE, accept=METADATA)
        except ApiError as error:
            if error.status not in {404, 409}:
                raise

    async def get(self, kind: Kind, namespace: str, name: str, *, accept: str = WHOLE) -> dict[str, Any]:
        """Read one object."""
        return await self._json("get", "GET", kind.path(namespace, name), accept=accept)

    async def list(
        self, kind: Kind, namespace: str = "", *, selector: str = "", accept: str = WHOLE, newest: bool = False
    ) -> dict[str, Any]:
        """Read a collection (`items` may be None when there are none), unless `newest` as the server remembers it."""
        options = {**({} if newest else {"resourceVersion": "0"}), **({"labelSelector": selector} if selector else {})}
        return await self._json("list", "GET", kind.path(namespace), params=options, accept=accept)

    async def raw(self, path: str) -> dict[str, Any]:
        """Read something that is no object, such as `/version`."""
        return await self._json("get", "GET", path)

    async def lease(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        """Read or write a lease: past all queues, tried once, and not patiently."""
        data = None if body is None else orjson.dumps(body)
        async with asyncio.timeout(5):
            return self._parsed(await self._send("lease", method, path, body=data, content=WHOLE))

    @contextlib.asynccontextmanager
    async def stream(self, path: str, params: Mapping[str, str], accept: str) -> AsyncIterator[aiohttp.ClientResponse]:
        """Open a watch of a collection. Reading it is without a time limit; opening it is not."""
        self.sent["watch"] += 1
        credentials = self._access.current()
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=5)
        try:
            async with asyncio.timeout(OPENING):
                response = await self._session.get(
                    credentials.server + path,
                    params=params,
                    headers={"Accept": accept, **credentials.headers},
                    ssl=credentials.context or True,
                    server_hostname=credentials.server_name or None,
                    timeout=timeout,
                )
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise self._unanswered(error) from error
        try:
            if response.status >= 400:
                if response.status == 401:
                    self._access.refresh()
                async with asyncio.timeout(OPENING):
                    body = await response.read()
                raise from_answer(response.status, body, response.headers.get("Retry-After"))
            yield response
        finally:
            # A watch never ends by itself: give the connection up rather than read on.
            response.close()

    async def _json(self, verb: str, method: str, path: str, **options: Any) -> dict[str, Any]:
        return self._parsed(await self._patiently(verb, method, path, **options))

    @staticmethod
    def _parsed(body: bytes) -> dict[str, Any]:
        found = orjson.loads(body)
        return found if isinstance(found, dict) else {}

    async def _patiently(self, verb: str, method: str, path: str, *, urgent: bool = False, **options: Any) -> bytes:
        for attempt in range(1, TRIES + 1):
            try:
                async with self._places.take(urgent=urgent), asyncio.timeout(TIMEOUT):
                    if method in {"PATCH", "DELETE"} and not self.may_write():
                        raise NotLeaderError
                    return await self._send(verb, method, path, **options)
            except TimeoutError as error:
                raise unanswered(error) from error
            except ApiError as error:
                wait = self._wait(error, attempt, method)
                if wait is None:
                    raise
                # Outside of the queue: those who wait hold nobody up.
                await asyncio.sleep(wait)
        raise AssertionError("unreachable")

    def _wait(self, error: ApiError, attempt: int, method: str) -> float | None:
        if attempt == TRIES or error.retry_after > LONGEST_WAIT:
            return None
        if error.status == 401:
            return 0.0 if self._access.refresh() else None
        if error.status == 429:
            return (error.retry_after or 0.5) * random.uniform(1.0, 1.5)  # noqa: S311 (spreads load, keeps no secret)
        # A kept connection that the server had closed. POST is not repeated: it may have been done.
        return 0.1 if error.status == 0 and attempt == 1 and method != "POST" else None

    async def _send(
        self,
        verb: str,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        body: bytes | None = None,
        content: str = "",
        accept: str = WHOLE,
    ) -> bytes:
        self.sent[verb] += 1
        credentials = self._access.current()
        headers = {"Accept": accept, **credentials.headers, **({"Content-Type": content} if content else {})}
        try:
            async with self._session.request(
                method,
                credentials.server + path,
                params=params,
                data=body,
                headers=headers,
                ssl=credentials.context or True,
                server_hostname=credentials.server_name or None,
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=5),
            ) as response:
                data = await response.read()
                if response.status >= 400:
                    raise from_answer(response.status, data, response.headers.get("Retry-After"))
                return data
        except (aiohttp.ClientError, OSError) as error:
            raise self._unanswered(error) from error

    def _unanswered(self, error: Exception) -> ApiError:
        if isinstance(error, aiohttp.ClientSSLError):
            self._access.refresh()  # the cluster may have another authority now
        return unanswered(error)
