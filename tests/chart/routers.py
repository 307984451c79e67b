"""Traefik before pods that say who they are: a server's rendered routes, Services and pods on the test cluster.

kwok's pods have addresses that nobody answers at, so each has a unix socket in a folder named by its address, and the
router (tests/cluster/tools/router) dials that. All between is real: the routes are read by Traefik's own providers from
the API server, the addresses from EndpointSlices that Kubernetes' own controller made of Services and pods.
"""

from __future__ import annotations

import base64
import http.client
import http.server
import json
import os
import shutil
import socket
import socketserver
import ssl
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from provisioning.providers.local.processes import Command, spawn_argv
from tests.bench.floor import free_ports
from tests.chart.render import Rendered, program
from tests.cluster.api import Api

GATEWAY = "gateway.networking.k8s.io/v1"
ROUTES = ("Service", "Ingress", "HTTPRoute", "ReferenceGrant", "Certificate")
PORTS = (8008, 8080)
_LIMIT = 60.0


@dataclass(frozen=True)
class Answer:
    """What came back: of a pod its name and what it was asked, else only the router's status."""

    status: int
    pod: str = ""
    path: str = ""
    length: int = 0

    @property
    def service(self) -> str:
        return self.pod.rpartition("-pod")[0]


class Pods:
    """The pods of one rendered server, one for each workload, and what answers for them."""

    def __init__(self, api: Api, namespace: str, rendered: Rendered) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="hearth-pods-", dir="/tmp"))
        self._servers: list[socketserver.BaseServer] = []
        for each in rendered.kind(*ROUTES):
            api.apply(each)
        names = [name for name in rendered.pods() if name.startswith("synapse-")]
        for name in names:
            template = rendered.pods()[name]
            meta = {**template["metadata"], "name": f"{name}-pod", "namespace": namespace}
            api.apply({"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": template["spec"]})
        for name in names:
            self._answer(api, namespace, f"{name}-pod")

    def close(self) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()
        shutil.rmtree(self.folder)

    def _answer(self, api: Api, namespace: str, name: str) -> None:
        def ready() -> str:
            status = (api.get("v1", "Pod", name, namespace) or {}).get("status", {})
            good = {"type": "Ready", "status": "True"}
            conditions = [{key: each[key] for key in good} for each in status.get("conditions", [])]
            return str(status.get("podIP", "")) if good in conditions else ""

        folder = self.folder / str(api.wait(f"pod {name}", ready, seconds=_LIMIT))
        folder.mkdir()
        for port in PORTS:
            server = _Unix(str(folder / f"{port}.sock"), type("Says", (_Says,), {"name": name}))
            threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
            self._servers.append(server)


class _Unix(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    request_queue_size = 64


class _Says(http.server.BaseHTTPRequestHandler):
    """Answers every request with the pod's name, the path as it came, and the length of the body."""

    protocol_version = "HTTP/1.1"
    name = ""

    def do_POST(self) -> None:
        length = len(self.rfile.read(int(self.headers.get("Content-Length") or 0)))
        body = json.dumps({"pod": self.name, "path": self.path, "length": length}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST  # noqa: N815 (the library's name)

    def address_string(self) -> str:
        return "router"

    def log_message(self, *_: object) -> None:
        """Say nothing."""


class Router:
    """One Traefik of kind `ingress` or `gateway` before these pods, and a client that trusts the authority alone."""

    def __init__(self, kubeconfig: Path, pods: Pods, authority: bytes, kind: str, **options: object) -> None:
        self.port = free_ports(1)[0]
        self.authority = authority.decode()
        words = [program("router"), "-kind", kind, "-listen", f"127.0.0.1:{self.port}", "-pods", str(pods.folder)]
        words += [word for name, value in options.items() for word in (f"-{name}", str(value))]
        environment = {"KUBECONFIG": str(kubeconfig), "PATH": os.environ["PATH"], "HOME": str(pods.folder)}
        command = Command("router", tuple(words), pods.folder, environment)
        self._log = (pods.folder / f"router-{self.port}.log").open("w+")
        self.process = subprocess.Popen(
            spawn_argv(command), env=environment, stdout=self._log, stderr=subprocess.STDOUT, start_new_session=True
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        self._log.close()

    def wait(self, host: str, path: str, service: str) -> None:
        """Wait until this path is served by this service."""
        end = time.monotonic() + _LIMIT
        said: object = None
        while time.monotonic() < end:
            assert self.process.poll() is None, self.text()
            try:
                said = self.ask(host, path)
                if said.service == service:
                    return
            except OSError as error:
                said = error
            time.sleep(0.2)
        raise AssertionError(f"{host}{path} is not served by {service} but {said}\n{self.text()}")

    def text(self) -> str:
        """Return what it wrote."""
        self._log.seek(0)
        return self._log.read()

    def ask(self, host: str, path: str, *, body: bytes | None = None, **versions: ssl.TLSVersion) -> Answer:
        """Ask exactly this path of a host, whose certificate must be good. Raises `OSError` when TLS fails."""
        context = ssl.create_default_context(cadata=self.authority)
        for name, version in versions.items():
            setattr(context, name, version)
        connection = _Connection(host, self.port, context)
        try:
            connection.request("GET" if body is None else "POST", path, body=body)
            answer = connection.getresponse()
            said = answer.read()
        finally:
            connection.close()
        if answer.status != 200:
            return Answer(answer.status)
        found: Mapping[str, Any] = json.loads(said)
        return Answer(200, found["pod"], found["path"], found["length"])


class _Connection(http.client.HTTPSConnection):
    """To a port of this machine, by the name of another host."""

    def __init__(self, host: str, port: int, context: ssl.SSLContext) -> None:
        super().__init__(host, 443, context=context, timeout=20)
        self._port, self._context = port, context

    def connect(self) -> None:
        plain = socket.create_connection(("127.0.0.1", self._port), 20)
        self.sock = self._context.wrap_socket(plain, server_hostname=self.host)


def authority_of(api: Api, namespace: str) -> bytes:
    """Return the authority of the server's certificate once that is signed."""
    secret = api.wait("certificate", lambda: api.get("v1", "Secret", "synapse-tls", namespace), seconds=_LIMIT)
    return base64.b64decode(secret["data"]["ca.crt"])


def ingress_class(name: str) -> dict[str, Any]:
    """Return a class of Ingresses that Traefik serves."""
    spec = {"controller": "traefik.io/ingress-controller"}
    return {"apiVersion": "networking.k8s.io/v1", "kind": "IngressClass", "metadata": {"name": name}, "spec": spec}


def gateway(name: str, namespace: str, port: int) -> list[dict[str, Any]]:
    """Return a Gateway that Traefik serves on this port with the server's certificate, and its class."""
    listener = {
        "name": "https",
        "port": port,
        "protocol": "HTTPS",
        "tls": {"certificateRefs": [{"name": "synapse-tls"}]},
        "allowedRoutes": {"namespaces": {"from": "All"}},
    }
    return [
        {
            "apiVersion": GATEWAY,
            "kind": "GatewayClass",
            "metadata": {"name": name},
            "spec": {"controllerName": "traefik.io/gateway-controller"},
        },
        {
            "apiVersion": GATEWAY,
            "kind": "Gateway",
            "metadata": {"name": "public", "namespace": namespace},
            "spec": {"gatewayClassName": name, "listeners": [listener]},
        },
    ]
