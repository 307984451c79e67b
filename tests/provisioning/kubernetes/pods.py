"""A declared stand-in for the pods of every server: kwok's run no container, so nothing would answer Hearth.

It is only what a pod could be: it reads the one Secret and the workload that the operator made of the MatrixServer, and
answers `/<namespace>/…` by them. A wrong registration secret or token is refused, as Synapse does.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs

import yaml

from provisioning.providers.local.keys import verify_key
from tests.cluster.api import Api

LISTS = ("/_synapse/admin/v2/users", "/_synapse/admin/v1/statistics/users/media")
Answer = tuple[int, dict[str, Any]]


@dataclass
class Pods:
    """Answers for every server of one cluster; has the rights of an administrator."""

    kubeconfig: Path
    users: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    """By namespace and localpart."""
    silent: set[str] = field(default_factory=set)
    lists: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """What the admin API lists, by path."""

    def __enter__(self) -> Self:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._handle()

            def do_POST(self) -> None:
                self._handle()

            def do_PUT(self) -> None:
                self._handle()

            def log_message(self, *_words: Any) -> None:
                """Say nothing."""

            def _handle(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                body = json.loads(self.rfile.read(length) or b"{}")
                _empty, namespace, path = self.path.split("/", 2)
                status, found = outer.answer(namespace, self.command, "/" + path, body)
                data = json.dumps(found).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    @property
    def route(self) -> str:
        """Where a server's Synapse is reached, with `{namespace}`."""
        return f"http://127.0.0.1:{self._http.server_address[1]}/{{namespace}}"

    def answer(self, namespace: str, method: str, path: str, body: dict[str, Any]) -> Answer:
        """Return status and body."""
        with Api.from_kubeconfig(self.kubeconfig) as api:
            held = api.get("v1", "Secret", "synapse-secrets", namespace)
            server = api.get("hearth.host/v1", "MatrixServer", "synapse", namespace)
            workload = api.get("apps/v1", "StatefulSet", "synapse-main", namespace)
        if held is None or server is None or workload is None or namespace in self.silent:
            return 502, {}
        secret = {key: base64.b64decode(value).decode() for key, value in held["data"].items()}
        version = workload["spec"]["template"]["spec"]["containers"][0]["image"].rpartition(":v")[2]
        if method == "GET":
            return self._read(path, secret, server["spec"]["serverName"], version)
        return self._write(self.users.setdefault(namespace, {}), path, secret, body)

    def _read(self, path: str, secret: dict[str, str], name: str, version: str) -> Answer:
        key_id, public = verify_key(secret["signing.key"])
        answers: dict[str, dict[str, Any]] = {
            "/_matrix/client/versions": {"versions": ["v1.11"]},
            "/_matrix/key/v2/server": {"server_name": name, "verify_keys": {key_id: {"key": public}}},
            "/_matrix/federation/v1/version": {"server": {"name": "Synapse", "version": version}},
            "/_synapse/admin/v1/server_version": {"server_version": version},
            "/_synapse/admin/v1/register": {"nonce": "n"},
        }
        path, _, query = path.partition("?")
        if path in LISTS:
            return 200, _page(self.lists.get(path, []), parse_qs(query))
        return (200, answers[path]) if path in answers else (404, {})

    @staticmethod
    def _write(users: dict[str, dict[str, Any]], path: str, secret: dict[str, str], body: dict[str, Any]) -> Answer:
        if path.endswith("/register"):
            signed = b"\0".join([b"n", body["username"].encode(), body["password"].encode(), b"admin"])
            if hmac.new(secret["registration"].encode(), signed, hashlib.sha1).hexdigest() != body["mac"]:
                return 403, {"errcode": "M_FORBIDDEN", "error": "HMAC incorrect"}
            if body["username"] in users:
                return 400, {"errcode": "M_USER_IN_USE", "error": "User ID already taken."}
            users[body["username"]] = body
        elif path.endswith("/login"):
            key = yaml.safe_load(secret["extra.yaml"])["jwt_config"]["secret"]
            signed_part, _, signature = str(body["token"]).rpartition(".")
            right = base64.urlsafe_b64encode(hmac.digest(key.encode(), signed_part.encode(), "sha256")).rstrip(b"=")
            if right.decode() != signature:
                return 403, {"errcode": "M_FORBIDDEN", "error": "JWT validation failed"}
        elif "/v2/users/" in path:
            name = path.rpartition("/")[2].removeprefix("%40").partition("%3A")[0]
            users[name] = users.get(name, {}) | body
        return 200, {"access_token": "t"}


def _page(rows: list[dict[str, Any]], query: dict[str, list[str]]) -> dict[str, Any]:
    """Return one page, as Synapse's admin API gives it."""
    first, limit = int(query.get("from", ["0"])[0]), int(query["limit"][0])
    more = {"next_token": str(first + limit)} if first + limit < len(rows) else {}
    return {"users": rows[first : first + limit], "total": len(rows), **more}
