"""A provider that fails on command, and the smallest homeserver its servers need. Only for injecting faults:
everything that can be shown with the real agent is shown with the real agent.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

from provisioning.providers.base import Observation, Progress, Recovering, Recovery, ServerSpec, StaleFence
from provisioning.providers.local.keys import verify_key

Fault = Callable[[], None]


@dataclass
class ScriptedProvider:
    """Records each call by its verb. `faults[verb]` are run before the verb, one a call, first to last."""

    url: str
    calls: list[str] = field(default_factory=list)
    certifying: list[str] = field(default_factory=list)
    """Its calls about certificates, which run beside others."""
    faults: dict[str, list[Fault]] = field(default_factory=dict)
    specs: dict[str, ServerSpec] = field(default_factory=dict)
    fences: dict[str, int] = field(default_factory=dict)
    request: bytes = b""
    """What the agent asks to have signed. Empty, as here, where agents get their certificates elsewhere."""
    installed: dict[str, dict[str, str]] = field(default_factory=dict)
    routes: dict[str, str] = field(default_factory=dict)
    """Private routes, by server. Others are reached as their clients reach them."""
    observations: dict[str, Observation] = field(default_factory=dict)
    recoveries: dict[str, Recovery] = field(default_factory=dict)
    """By instance."""
    recovered: dict[str, Recovering] = field(default_factory=dict)
    """What `recovering` tells, by instance."""
    exchanged: dict[str, bool] = field(default_factory=dict)
    """By instance, whether its server has what was restored in it."""
    known_since: dict[str, Any] | None = None
    asked_under: list[int | None] = field(default_factory=list)
    """The fences of `since`: None leaves a server running."""
    on_start: Callable[[ServerSpec], None] = lambda _: None
    lock: threading.Lock = field(default_factory=threading.Lock)

    def prepare(self, version: str, progress: Progress) -> None:
        self._call("prepare", progress=progress)
        progress(f"Synapse {version} is ready to be used.")

    def ensure_storage(self, spec: ServerSpec, *, fence: int, progress: Progress) -> None:
        self._call("ensure_storage", spec.server_id, fence, progress)

    def configure(self, spec: ServerSpec, *, fence: int, progress: Progress) -> None:
        self._call("configure", spec.server_id, fence, progress)
        self.specs[spec.server_id] = spec

    def start(self, spec: ServerSpec, *, fence: int, progress: Progress) -> str:
        self._call("start", spec.server_id, fence, progress)
        self.on_start(spec)
        return self.url

    def stop(self, server_id: str, *, fence: int, progress: Progress) -> None:
        self._call("stop", server_id, fence, progress)

    def remove(self, server_id: str, *, fence: int, progress: Progress) -> None:
        self._call("remove", server_id, fence, progress)
        self.specs.pop(server_id, None)

    def certificate_request(self, server_id: str, *, fence: int) -> bytes:
        self._call("certificate_request", server_id, fence, calls=self.certifying)
        return self.request

    def install_certificate(self, server_id: str, *, chain: str, trust: str, address: str, fence: int) -> None:
        self._call("install_certificate", server_id, fence, calls=self.certifying)
        self.installed[server_id] = {"chain": chain, "trust": trust, "address": address}

    def recover(self, spec: ServerSpec, recovery: Recovery, *, fence: int, progress: Progress) -> None:
        self._call("recover", spec.server_id, fence, progress)
        self.specs[spec.server_id], self.recoveries[spec.server_id] = spec, recovery

    def recovering(self, instance: str) -> Recovering:
        self._call("recovering")
        found = self.recovered.get(instance, Recovering())
        return replace(found, exchanged=self.exchanged.get(instance, False))

    def cancel_recovery(self, instance: str, *, fence: int) -> None:
        self._call("cancel_recovery", instance, fence)

    def since(self, server_id: str, *, fence: int | None = None) -> Mapping[str, Any] | None:
        self._call("since", server_id, fence)
        self.asked_under.append(fence)
        return self.known_since

    def exchange(self, server_id: str, instance: str, *, restored: bool, fence: int, progress: Progress) -> None:
        self._call("exchange", server_id, fence, progress)
        self.exchanged[instance] = restored

    def route(self, server_id: str, url: str) -> str:
        return self.routes.get(server_id, url)

    def observe(self) -> Mapping[str, Observation]:
        self._call("observe")
        return dict(self.observations)

    def _call(
        self,
        verb: str,
        server_id: str = "",
        fence: int | None = None,
        progress: Progress = lambda _: None,
        calls: list[str] | None = None,
    ) -> None:
        with self.lock:
            if fence is not None:
                if fence < self.fences.get(server_id, 0):
                    raise StaleFence("A newer worker has this server.")
                self.fences[server_id] = fence
            (self.calls if calls is None else calls).append(verb)
            fault = self.faults[verb].pop(0) if self.faults.get(verb) else None
        if fault:
            fault()
        progress(f"{verb} is done.")


class Stub(BaseHTTPRequestHandler):
    """Answers what the engine asks of a homeserver, for the server that was started last."""

    server_name: ClassVar[str] = ""
    signing_key: ClassVar[str] = ""
    version: ClassVar[str] = ""
    users: ClassVar[dict[str, dict[str, Any]]] = {}
    broken: ClassVar[bool] = False

    def do_GET(self) -> None:
        key_id, public = verify_key(self.signing_key)
        answers: dict[str, Any] = {
            "/_matrix/client/versions": {"versions": ["v1.11"]},
            "/_matrix/key/v2/server": {"server_name": self.server_name, "verify_keys": {key_id: {"key": public}}},
            "/_synapse/admin/v1/server_version": {"server_version": self.version},
            "/_synapse/admin/v1/register": {"nonce": "n"},
        }
        if self.path in answers:
            self._answer(200, answers[self.path])
        else:
            self._answer(404, {"errcode": "M_UNRECOGNIZED", "error": "Unrecognized request"})

    def do_POST(self) -> None:
        body = self._body()
        if self.path.endswith("/register"):
            if body["username"] in self.users:
                self._answer(400, {"errcode": "M_USER_IN_USE", "error": "User ID already taken."})
                return
            self.users[body["username"]] = body
        if self.path.endswith("/login") and self.broken:
            self._answer(500, {"errcode": "M_UNKNOWN", "error": "Internal server error"})
            return
        self._answer(200, {"access_token": "t"})

    def do_PUT(self) -> None:
        name = self.path.rpartition("/")[2].removeprefix("%40").partition("%3A")[0]
        self.users[name] = self.users.get(name, {}) | self._body()
        self._answer(200, {})

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (the name of the base class)
        pass

    def _body(self) -> dict[str, Any]:
        found = json.loads(self.rfile.read(int(self.headers["Content-Length"])) or b"{}")
        assert isinstance(found, dict)
        return found

    def _answer(self, status: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@contextmanager
def scripted() -> Iterator[ScriptedProvider]:
    """Give a provider with its homeserver on a port of its own."""
    Stub.users, Stub.broken = {}, False
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Stub)
    httpd.daemon_threads = True
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()

    def started(spec: ServerSpec) -> None:
        Stub.server_name, Stub.signing_key = spec.server_name, spec.secrets["signing_key"]
        Stub.version = spec.version

    try:
        yield ScriptedProvider(url=f"http://127.0.0.1:{httpd.server_port}", on_start=started)
    finally:
        httpd.shutdown()
        httpd.server_close()
        thread.join()
