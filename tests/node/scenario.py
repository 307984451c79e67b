"""What is tried on the real node, one step after the other. Runs inside of the run's namespaces; see `__main__`."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx

from provisioning.providers.local.keys import verify_key
from tenants.releases import Release
from tests.chart import values
from tests.chart.processes import new_secret
from tests.cluster.api import Object
from tests.node.machine import Node
from tests.node.people import Person
from tests.node.versions import NEW, OLD
from tests.node.volumes import CLASS
from tests.operator.process import Operator
from tests.operator.servers import SERVER, Servers

PROBE = "http://synapse-main.{namespace}.svc:8008"
STATEFUL = ("apps/v1", "StatefulSet")
LIMIT = 420.0
"""Seconds that any step may wait; a machine for tests may be slow."""


class Scenario:
    """One server's life."""

    def __init__(self, node: Node, operator: Operator, archives: Mapping[str, Path]) -> None:
        self.node = node
        self.operator = operator
        self.archives = archives
        self.seconds: dict[str, float] = {}
        self.servers = Servers(node.api)
        self.secret = new_secret()

    def run(self) -> None:
        """Do it all. A step that fails ends the run with what the cluster says."""
        with self.step("node"):
            self.node.wait_ready()
            self.node.load(self.archives.values())
        with self.step("database_operator"):
            self.node.install_cloudnative_pg(self.image("cloudnative-pg"))
            self.node.wait_cloudnative_pg(seconds=LIMIT)
        with self.step("create"):
            self.create()
        with self.step("talk"):
            self.alice.register(self.secret["registration"])
            self.alice.talk("The first message")
        for step in (self.resize, self.workers, self.suspend, self.resume, self.upgrade, self.delete):
            with self.step(step.__name__):
                step()

    def create(self) -> None:
        """Make a server as Hearth's provider does: a namespace under `restricted`, a Secret, a MatrixServer.

        Only this step and `delete` know how a server comes and goes. All others need `namespace`, `secret`, `server`
        and `alice` alone, so Hearth's own page can take their place.
        """
        self.namespace = self.servers.place()
        meta = {"name": "synapse-secrets", "namespace": self.namespace}
        self.node.api.apply({"apiVersion": "v1", "kind": "Secret", "metadata": meta, "stringData": self.secret})
        self.server = self.servers.make(self.spec(OLD), namespace=self.namespace)
        self.alice = Person(PROBE.format(namespace=self.namespace), "alice")
        self.settled()
        self.answers(OLD)

    def resize(self) -> None:
        """More memory for the processes and more room for the database and the media."""
        self.server.change(
            size={"cpu": 3, "memory": "5Gi", "disk": "30Gi"},
            database={"cluster": {"storage": {"size": "6Gi"}}},
            media={"volume": {"size": "7Gi"}},
        )
        self.settled()
        grown = {"postgres-1": "6Gi", "media": "7Gi"}
        self.node.api.wait("grown volumes", lambda: grown.items() <= self.claims().items(), seconds=LIMIT)
        self.alice.talk("After the resize")

    def workers(self) -> None:
        """Redis, a generic worker and a federation sender beside the main process."""
        self.server.change(
            size={"cpu": 3, "memory": "5Gi"},
            workers={"generic": {"min": 1, "max": 1}, "federationSenders": 1},
            redis={"own": {"persistence": True, "storage": {"size": "1Gi", "class": CLASS}}},
            images={"redis": self.image("redis")},
        )
        self.settled()
        self.alice.talk("With workers")
        through = Person(f"http://synapse-generic.{self.namespace}.svc:8008", "alice", self.alice.room, self.alice.said)
        through.talk("Through a worker")

    def suspend(self) -> None:
        """No process is left; whoever asks is told why."""
        self.server.change(suspended={"message": "The bill of November is open."})
        self.server.wait("Ready", "False", "Suspended", seconds=LIMIT)
        self.node.api.wait("end of all processes", lambda: set(self.pods()) <= {"synapse-front"}, seconds=LIMIT)
        front = f"http://synapse-front.{self.namespace}.svc:8080/_matrix/client/versions"
        answer = self.node.api.wait("an answer of the front", lambda: _get(front), seconds=LIMIT)
        assert answer.status_code == 403, answer.text
        assert answer.json()["error"] == "The bill of November is open.", answer.text

    def resume(self) -> None:
        """Everything is there again."""
        self.server.change(suspended=None)
        self.settled()
        self.alice.talk("After the pause")

    def upgrade(self) -> None:
        """A newer Synapse; the operator is killed as soon as it has begun."""
        before = self.server.need(STATEFUL, "synapse-main")["metadata"]["generation"]
        self.server.change(synapse=_synapse(NEW), images={"synapse": self.image("synapse", NEW)})
        self.server.wait_child(
            STATEFUL, "synapse-main", lambda found: found["metadata"]["generation"] > before, seconds=LIMIT
        )
        self.operator.kill()
        self.operator.start()
        self.settled()
        self.answers(NEW)
        self.alice.talk("After the upgrade")

    def delete(self) -> None:
        """Nothing is left: no pod, no volume, no folder, no container."""
        api = self.node.api
        api.delete(*SERVER, "synapse", self.namespace)
        api.wait("end of the server", lambda: api.get(*SERVER, "synapse", self.namespace) is None, seconds=LIMIT)
        api.wait("end of its pods", lambda: not self.pods(), seconds=LIMIT)
        api.delete("v1", "Namespace", self.namespace)
        api.wait("end of the namespace", lambda: api.get("v1", "Namespace", self.namespace) is None, seconds=LIMIT)
        api.wait("end of its volumes", lambda: not api.list("v1", "PersistentVolume"), seconds=LIMIT)
        folders = self.node.folder / "volumes"
        api.wait("end of their folders", lambda: not list(folders.iterdir()), seconds=LIMIT)
        api.wait("end of its containers", lambda: self.node.containers() == {"manager"}, seconds=LIMIT)

    def settled(self) -> None:
        """Wait until the server answers, nothing is under way and nothing is wrong."""
        for kind, status in (("Ready", "True"), ("Progressing", "False"), ("Degraded", "False")):
            self.server.wait(kind, status, seconds=LIMIT)
        self.server.wait("Ready", "True", seconds=LIMIT)

    def answers(self, release: Release) -> None:
        """The protocol checks: versions, the signing key, the release that runs."""
        base = PROBE.format(namespace=self.namespace)
        assert httpx.get(f"{base}/_matrix/client/versions").json()["versions"]
        key_id = verify_key(self.secret["signing.key"])[0]
        assert key_id in httpx.get(f"{base}/_matrix/key/v2/server").json()["verify_keys"]
        version = httpx.get(f"{base}/_matrix/federation/v1/version").json()["server"]["version"]
        assert version == release.version, version
        assert self.server.status()["version"] == release.version, self.server.status()

    def spec(self, release: Release) -> dict[str, Any]:
        """Return the smallest server with everything its own."""
        return values.monolith(
            serverName="alice.test",
            publicHost="alice.test",
            synapse=_synapse(release),
            images={"synapse": self.image("synapse", release), "postgres": self.image("postgresql"), "redis": None},
            database={"cluster": {"storage": {"size": "5Gi", "class": CLASS}}},
            media={"s3": None, "volume": {"size": "5Gi", "class": CLASS}},
            routing={"ingress": {"class": "test"}, "certificate": {"issuerRef": {"name": "test"}}},
            secret={"signingKeyId": verify_key(self.secret["signing.key"])[0]},
        )

    def image(self, name: str, release: Release | None = None) -> str:
        """Return the whole name of an image of this run."""
        start = f"localhost/{name}:" + (f"v{release.version}" if release else "")
        return next(each for each in self.archives if each.startswith(start))

    def claims(self) -> dict[str, str]:
        """Return the real size of each claim."""
        found = self.node.api.list("v1", "PersistentVolumeClaim", self.namespace)
        return {each["metadata"]["name"]: each["status"].get("capacity", {}).get("storage", "") for each in found}

    def pods(self) -> list[str]:
        """Return the workload's name of each pod."""
        found = self.node.api.list("v1", "Pod", self.namespace)
        return [each["metadata"]["labels"].get("app.kubernetes.io/name", each["metadata"]["name"]) for each in found]

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Time a step; where it fails, tell what the cluster knows."""
        say(f"{name} ...")
        began = time.monotonic()
        try:
            yield
        except BaseException:
            say(f"{name} FAILED after {time.monotonic() - began:.0f} s")
            self.tell()
            raise
        self.seconds[name] = round(time.monotonic() - began, 1)
        say(f"{name}: {self.seconds[name]} s")

    def tell(self) -> None:
        """Print what helps to understand a failure."""
        for name in ("containerd", "kubelet", "kube-proxy", "coredns", "volumes"):
            say(f"--- {name}\n{self.node.tail(name, 12)}")
        say("--- operator\n" + "\n".join(self.operator.text().splitlines()[-25:]))
        for namespace in filter(None, ("cnpg-system", getattr(self, "namespace", ""))):
            say(f"--- pods of {namespace}")
            for line in (*self.node.pods(namespace), *self.node.events(namespace)[-40:]):
                say(f"  {line}")
            say(self.node.log(namespace, "", 25))
        if hasattr(self, "server"):
            say(json.dumps(self.server.status(), indent=1))


def _synapse(release: Release) -> Object:
    return {"version": release.version, "schemaVersion": release.schema, "compatVersion": release.compat}


def _get(url: str) -> httpx.Response | None:
    try:
        return httpx.get(url, timeout=5)
    except httpx.TransportError:
        return None


def say(text: str) -> None:
    """Print a line at once, also into a pipe."""
    print(text, flush=True)  # noqa: T201 (this is a command)


def main(arguments: list[str]) -> int:
    """Run on a node in a folder, with the archives of its images as `reference=path`."""
    folder, archives = Path(arguments[0]), dict(each.split("=", 1) for each in arguments[1:])
    began = time.monotonic()
    with Node(folder) as node, Operator(node.cluster.kubeconfig, node.logs, PROBE, name="operator") as operator:
        scenario = Scenario(node, operator, {name: Path(path) for name, path in archives.items()})
        scenario.run()
    say(json.dumps({"ok": True, "total_s": round(time.monotonic() - began, 1)} | scenario.seconds))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
