"""A proxy before an API server that injects faults and keeps a record of every request.

A request that brings a token is passed on with it; one that brings none is an administrator's. It runs in a thread of
its own and speaks HTTP/1.1 with TLS; watches in JSON only, because it puts lines of its own between theirs.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, Self, TypeVar

import aiohttp
from aiohttp import web
from multidict import CIMultiDict
from yarl import URL

from tests.cluster.api import connection
from tests.cluster.certificates import Authority
from tests.cluster.launch import write_kubeconfig

HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "upgrade", "te", "trailer", "host"}
REASONS = {410: "Expired", 429: "TooManyRequests", 500: "InternalError", 503: "ServiceUnavailable", 401: "Unauthorized"}
LONGEST_LINE = 2**24
_Result = TypeVar("_Result")


@dataclass
class Request:
    """One request: Kubernetes' verb for it (`list`, `watch`, `patch`, ...), its path, query, and time.monotonic().

    `status` is 0 for as long as there is no answer, and where the connection was cut.
    """

    verb: str
    path: str
    query: str
    at: float
    status: int = 0

    @property
    def kind(self) -> str:
        """The plural name of the resource, such as `configmaps`, or "" where the path names none."""
        found = re.match(r"/apis?/(?:v1|[^/]+/[^/]+)/(?:namespaces/[^/]+/)?([^/]+)", self.path)
        return found.group(1) if found else ""


@dataclass
class _Rule:
    """Answers `status` to requests that fit; `left` counts down, None never ends. Status 0 cuts, -1 never answers."""

    status: int
    verbs: frozenset[str]
    path: re.Pattern[str]
    left: int | None
    retry_after: int | None


@dataclass(eq=False)
class _Watch:
    """One running watch of a client."""

    queue: asyncio.Queue[bytes | None] = field(default_factory=asyncio.Queue)
    stalled: bool = False


class FaultProxy:
    """Use as a context manager; every verb may be called from any thread but the proxy's own."""

    def __init__(self, kubeconfig: Path, folder: Path, authority: Authority | None = None) -> None:
        """`folder` takes the proxy's certificate and kubeconfigs; without `authority` it makes one of its own."""
        self._upstream, self._verify, self._headers = connection(kubeconfig)
        self._plain = ssl.create_default_context(cadata=b"".join(self._verify.get_ca_certs(binary_form=True)))
        self._folder = folder
        self._authority = authority or Authority("fault proxy")
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fault-proxy", daemon=True)
        self._rules: list[_Rule] = []
        self._watches: set[_Watch] = set()
        self._down = False
        self._serving = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self.port = 0
        self.requests: list[Request] = []

    def __enter__(self) -> Self:
        self._thread.start()
        self._call(self._start())
        return self

    def __exit__(self, *_: object) -> None:
        self._call(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(60)
        self._loop.close()

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    def kubeconfig(self, token: str | None = None) -> Path:
        """Return the path of a kubeconfig that goes through here, with this token or an administrator's rights."""
        place = self._folder / f"faults-{len(list(self._folder.glob('faults-*')))}"
        write_kubeconfig(place, self.url, self._folder / "faults.ca", {"token": token} if token else {})
        return place

    def counts(self, *, since: float = 0, kind: str | None = None) -> Counter[str]:
        """Return how often each verb was asked for, since a moment of `time.monotonic()`, of one kind or all."""
        return Counter(each.verb for each in self.requests if each.at >= since and kind in {None, each.kind})

    def refuse(
        self, status: int, *, verbs: str = "", path: str = "", times: int | None = None, retry_after: int | None = None
    ) -> Callable[[], None]:
        """Answer `status` to what fits (`verbs` split by blanks, `path` a pattern); return what ends it.

        Status 0 cuts the connection without an answer, -1 keeps it open for ever without one.
        """
        rule = _Rule(status, frozenset(verbs.split()), re.compile(path), times, retry_after)
        self._do(lambda: self._rules.append(rule))
        return lambda: self._do(lambda: self._rules.remove(rule) if rule in self._rules else None)

    @contextlib.contextmanager
    def refusing(
        self, status: int, *, verbs: str = "", path: str = "", retry_after: int | None = None
    ) -> Iterator[None]:
        """Refuse for as long as the block runs."""
        end = self.refuse(status, verbs=verbs, path=path, retry_after=retry_after)
        try:
            yield
        finally:
            end()

    @contextlib.contextmanager
    def down(self) -> Iterator[None]:
        """Cut everything and every new connection for as long as the block runs."""
        self._do(lambda: setattr(self, "_down", True))
        self.cut()
        try:
            yield
        finally:
            self._do(lambda: setattr(self, "_down", False))

    def cut(self) -> int:
        """Cut all connections in the middle of whatever they do; return how many there were."""
        return self._do(self._cut)

    def end_watches(self) -> int:
        """End all running watches as the API server does at their timeout; return how many there were."""
        return self._do(lambda: self._tell(None))

    def expire_watches(self) -> int:
        """Send 410 Gone in all running watches and end them; return how many there were."""
        event = {"type": "ERROR", "object": _status(410, "too old resource version")}
        return self._do(lambda: self._tell(json.dumps(event).encode() + b"\n", None))

    def break_watches(self, status: int = 500) -> int:
        """Send an ERROR event with this status in all running watches and end them; return how many there were."""
        event = {"type": "ERROR", "object": _status(status, "injected")}
        return self._do(lambda: self._tell(json.dumps(event).encode() + b"\n", None))

    def say_in_watches(self, line: bytes) -> int:
        """Put a line of one's own into all running watches; return how many there were."""
        return self._do(lambda: self._tell(line + b"\n"))

    def change_authority(self, authority: Authority) -> int:
        """Be certified by another authority from now on, and cut all connections; return how many there were."""

        def change() -> int:
            self._certify(authority)
            return self._cut()

        return self._do(change)

    def stall_watches(self) -> int:
        """Swallow all further events of the running watches, and keep them open: a half-dead connection."""
        return self._do(self._stall)

    @property
    def watches(self) -> int:
        """The number of watches that run now."""
        return len(self._watches)

    def _cut(self) -> int:
        transports = [each.transport for each in self._server.connections if each.transport is not None]
        for transport in transports:
            transport.abort()
        return len(transports)

    def _tell(self, *lines: bytes | None) -> int:
        for watch in self._watches:
            for line in lines:
                watch.queue.put_nowait(line)
        return len(self._watches)

    def _stall(self) -> int:
        for watch in self._watches:
            watch.stalled = True
        return len(self._watches)

    async def _start(self) -> None:
        self._certify(self._authority)
        self._sessions = {True: _session(self._plain), False: _session(self._verify)}
        self._server = web.Server(self._handle, handler_cancellation=True, keepalive_timeout=3600, access_log=None)
        self._runner = web.ServerRunner(self._server)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0, ssl_context=self._serving).start()
        self.port = self._runner.addresses[0][1]

    def _certify(self, authority: Authority) -> None:
        pair = authority.issue("fault-proxy", hosts=("127.0.0.1", "localhost"))
        (self._folder / "faults.ca").write_bytes(authority.certificate)
        both = self._folder / "faults.pem"
        both.touch(mode=0o600)
        both.write_bytes(pair.certificate + pair.key)
        self._serving.load_cert_chain(both)

    async def _stop(self) -> None:
        self._tell(None)
        self._cut()
        await self._runner.cleanup()
        for session in self._sessions.values():
            await session.close()

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        record = Request(_verb(request), request.path, request.query_string, time.monotonic())
        self.requests.append(record)
        rule = None if self._down else self._rule(record.verb, request.path)
        if self._down:
            _abort(request)
        elif rule is not None:
            answer = await self._refuse(rule, request)
        else:
            answer = await self._forward(request, record)
        record.status = answer.status
        return answer

    def _rule(self, verb: str, path: str) -> _Rule | None:
        for rule in self._rules:
            if (not rule.verbs or verb in rule.verbs) and rule.path.search(path):
                if rule.left is not None:
                    rule.left -= 1
                    if rule.left <= 0:
                        self._rules.remove(rule)
                return rule
        return None

    async def _refuse(self, rule: _Rule, request: web.BaseRequest) -> web.StreamResponse:
        if rule.status < 0:
            await asyncio.Event().wait()
        if rule.status == 0:
            _abort(request)
        headers = {"Retry-After": str(rule.retry_after)} if rule.retry_after is not None else {}
        return web.json_response(_status(rule.status, "injected"), status=rule.status, headers=headers)

    async def _forward(self, request: web.BaseRequest, record: Request) -> web.StreamResponse:
        session = self._sessions["Authorization" in request.headers]
        headers = _kept(request.headers)
        if "Authorization" not in headers:
            headers.update(self._headers)
        body = await request.read() if request.can_read_body else None
        url = URL(self._upstream + request.raw_path, encoded=True)
        try:
            async with session.request(request.method, url, headers=headers, data=body) as found:
                answer = web.StreamResponse(status=found.status, reason=found.reason, headers=_kept(found.headers))
                record.status = found.status
                await answer.prepare(request)
                if record.verb == "watch" and found.status == 200:
                    await self._pass_events(found, answer)
                else:
                    async for chunk in found.content.iter_any():
                        await answer.write(chunk)
                await answer.write_eof()
                return answer
        except aiohttp.ClientError:
            _abort(request)  # the API server is gone: the client sees what it would see without us

    async def _pass_events(self, found: aiohttp.ClientResponse, answer: web.StreamResponse) -> None:
        watch = _Watch()
        self._watches.add(watch)
        reader = asyncio.create_task(self._read(found, watch))
        try:
            while (line := await watch.queue.get()) is not None:
                await answer.write(line)
        finally:
            self._watches.discard(watch)
            reader.cancel()
            with contextlib.suppress(asyncio.CancelledError, aiohttp.ClientError):
                await reader

    async def _read(self, found: aiohttp.ClientResponse, watch: _Watch) -> None:
        try:
            async for line in found.content:
                if not watch.stalled:
                    watch.queue.put_nowait(line)
        finally:
            if not watch.stalled:
                watch.queue.put_nowait(None)

    def _do(self, action: Callable[[], _Result]) -> _Result:
        """Run in the proxy's thread, where all its state is."""

        async def run() -> _Result:
            return action()

        return self._call(run())

    def _call(self, work: Coroutine[Any, Any, _Result]) -> _Result:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)


def _session(verify: ssl.SSLContext) -> aiohttp.ClientSession:
    """Return a session that passes bodies on as they are and has no limits of its own."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(ssl=verify, limit=0),
        timeout=aiohttp.ClientTimeout(total=None),
        read_bufsize=LONGEST_LINE,
        auto_decompress=False,
    )


def _abort(request: web.BaseRequest) -> NoReturn:
    """Cut the client's connection without another byte."""
    if request.transport is not None:
        request.transport.abort()
    raise ConnectionResetError


def _kept(headers: Mapping[str, str]) -> CIMultiDict[str]:
    return CIMultiDict((key, value) for key, value in headers.items() if key.lower() not in HOP_BY_HOP)


def _verb(request: web.BaseRequest) -> str:
    """Return Kubernetes' verb: a GET is a get, a list or a watch."""
    if request.method != "GET":
        return {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}.get(request.method, "other")
    if request.query.get("watch", "") in {"true", "1"}:
        return "watch"
    # A namespace is read by a path that ends as a list of things in it begins, so it comes first.
    inner = re.sub(r"^/(api/v1|apis/[^/]+/[^/]+)/?", "", request.path)
    if inner == request.path or not inner:
        return "get"
    parts = inner.split("/")
    if parts[0] == "namespaces" and len(parts) > 2:
        parts = parts[2:]
    return "list" if len(parts) == 1 else "get"


def _status(code: int, message: str) -> dict[str, Any]:
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": message,
        "reason": REASONS.get(code, "Unknown"),
        "code": code,
    }
