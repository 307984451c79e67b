"""What is tried on the real node, one step after the other. Runs inside of the run's namespaces; see `__main__`.

Alice has her server by Hearth's own pages. Only where no page of hers says it (her plan) Hearth's database is told, and
only to look at what came of it, or to do harm, the cluster is asked.
"""

from __future__ import annotations

import base64
import contextlib
import datetime as dt
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psycopg

from provisioning.providers.kubernetes.place import ROUTE
from provisioning.providers.local.keys import verify_key
from security.transport.certmanager import AUTHORITY
from tenants.releases import Release
from tests.cluster.api import Object
from tests.cluster.furnish import NAME
from tests.node import hearth
from tests.node.backing import BUCKET, Backing
from tests.node.bringing import Bringing
from tests.node.hearth import Alice, Staff
from tests.node.machine import ADDRESS, Node
from tests.node.namespaces import STATE
from tests.node.operator_pods import NAMESPACE, Operator
from tests.node.people import Person
from tests.node.versions import NEW, OLD
from tests.node.volumes import CLASS
from tests.operator.servers import SERVER, STATEFUL, Server
from tests.stack import Stack, alive

CLUSTERS = ("postgresql.cnpg.io/v1", "Cluster")
LIMIT = 420.0
"""Seconds that any step may wait; a machine for tests may be slow."""
BASE = "localhost/debian:12"
"""What the other images stand on; no pod runs it."""
SIZE = {"vcpu": 4, "memory_gb": 8, "disk_gb": 40, "object_gb": 100}
"""The smallest at which Hearth gives a server workers."""
BEGUN = ("begin", "operators", "region", "create", "talk", "back_up")
# A node of two cores has no room beside a larger server for what is brought back, so that comes first.
LATER = ("resize", "suspend", "resume", "go_back", "upgrade", "change_over")
WAYS = {
    "life": (*BEGUN, "bring_back", *LATER, "delete"),
    "restore": (*BEGUN, "bring_back", "delete"),
}
"""What is done, by `NODE`."""


class Scenario:
    """One server's life."""

    def __init__(self, node: Node, archives: Mapping[str, Path], backing: Backing) -> None:
        self.node = node
        self.backing = backing
        self.archives = archives
        self.seconds: dict[str, float] = {}
        self.operator = Operator(node, self.image("hearth-operator"))
        self.stack: Stack | None = None

    def run(self) -> None:
        """Do it all. A step that fails ends the run with what the cluster says."""
        try:
            for name in WAYS[os.environ.get("NODE") or "life"]:
                step = getattr(self, name)
                with self.step(name):
                    step()
        finally:
            self.end()

    def begin(self) -> None:
        """The node becomes ready and has its images; meanwhile Hearth starts and people sign up."""
        with ThreadPoolExecutor(1) as beside:
            loaded = beside.submit(self.node.load, [self.archives[each] for each in self.archives if each != BASE])
            quick = {"HEARTH_BACKUP_REPORT_SECONDS": "5"}
            self.stack = hearth.start(self.node.folder, self.backing.settings() | quick)
            self.staff = Staff(self.stack, "staff@example.org")
            self.staff.claim()
            self.alice = Alice(self.stack, "alice@example.org")
            self.alice.sign_up()
            self.node.wait_ready()
            loaded.result()

    def operators(self) -> None:
        """CloudNativePG's operator, and Hearth's by its chart."""
        self.node.install_cloudnative_pg(self.image("cloudnative-pg"))
        self.operator.install()
        self.node.wait_cloudnative_pg(seconds=LIMIT)
        self.operator.wait_ready(seconds=LIMIT)

    def region(self) -> None:
        """Staff make the cluster a region, by the account that the chart made for Hearth; its check finds no fault."""
        cluster = self.node.cluster
        # Where a router would run, from which servers let anybody in; none runs here.
        self.node.api.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "ingress"}})
        for each in self.backing.issuer():
            self.node.api.apply(each)
        self.staff.make_region(
            hearth.kubeconfig(self.node.api, cluster.url, cluster.folder / "ca.crt"),
            route=ROUTE,
            synapse_image="localhost/synapse:v{version}",
            postgres_image=self.image("postgresql"),
            redis_image=self.image("redis"),
            storage_class=CLASS,
            ingress_class=NAME,
            issuer=NAME,
            priority_class="hearth-server",
            etcd_encrypted="on",
            backup_image=self.image("hearth-backup"),
            backup_issuer=AUTHORITY,
            overlay=json.dumps({"backup": {"storeAuthority": self.backing.authority}}),
        )
        keys = {"access_key": self.backing.key, "secret_key": self.backing.secret}
        keys |= {f"agent_{name}": value for name, value in keys.items()}
        self.staff.make_store(code="minio", name="MinIO", endpoint=self.backing.endpoint, bucket=BUCKET, **keys)

    def create(self) -> None:
        """Alice orders a server in that region; Hearth calls it ready after its own checks."""
        self.alice.orders("hearth")
        self.alice.wait_done("Create", limit=LIMIT)
        self.alice.wait_for(self.alice.server, "ready", LIMIT)
        self.namespace = self.alice.namespace
        self.server = Server(self.node.api, self.namespace)
        self.key = self.signing_key()
        self.answers(NEW)

    def talk(self) -> None:
        """The password that the page shows once opens the server to a Matrix client."""
        shown = self.alice.connection(self.alice.server)
        self.person = Person(self.route(), shown.user, shown.password)
        self.person.talk("The first message")

    def back_up(self) -> None:
        """Without anybody's doing there is a restore point, and the write-ahead log that follows it."""
        found = self.server.wait("BackupReady", "True", "Written", seconds=LIMIT)
        (point,) = self.backing.points(self.namespace.removeprefix("hearth-"))
        assert point["id"] in found["message"], found
        assert (point["kind"], point["server_name"]) == ("first", self.alice.server_name)
        assert point["signing_key_id"] == verify_key(self.key)[0]

        def logged() -> int:
            return self.backing.count(point["server"], f"lines/{point['line']}/wal/")

        before = logged()
        self.person.talk("This is in the log")
        self.node.api.wait("more of the log in the store", lambda: logged() > before, seconds=LIMIT)

    def bring_back(self) -> None:
        """The server goes back to a moment before a message, beside what it has, and back again."""
        Bringing(self.node.api, self.alice, self.person, LIMIT, say).run()

    def resize(self) -> None:
        """More memory, larger volumes; at that size also Redis, generic workers and a federation sender."""
        self.alice.carry_out("Apply changes", lambda: self.alice.change_size(**SIZE), "ready", limit=LIMIT)
        grown = {"postgres-1": "19Gi", "media": "20Gi"}
        self.node.api.wait("grown volumes", lambda: grown.items() <= self.claims().items(), seconds=LIMIT)
        self.person.talk("After the resize")
        self.person.through(f"http://synapse-generic.{self.namespace}.svc:8008").talk("Through a worker")

    def suspend(self) -> None:
        """No process is left; whoever asks is told why."""
        message = "The bill of November is open."
        self.before_pause = self.line()
        self.alice.carry_out("Suspend", lambda: self.alice.suspend(message), "suspended", limit=LIMIT)
        self.node.api.wait("end of all processes", lambda: set(self.pods()) <= {"synapse-front"}, seconds=LIMIT)
        front = f"http://synapse-front.{self.namespace}.svc:8080/_matrix/client/versions"
        answer = self.node.api.wait("an answer of the front", lambda: _get(front), seconds=LIMIT)
        assert answer.status_code == 403, answer.text
        assert answer.json()["error"] == message, answer.text

    def resume(self) -> None:
        """Everything is there again."""
        self.alice.carry_out("Resume", self.alice.resume, "ready", limit=LIMIT)
        self.person.talk("After the pause")
        assert self.line() == self.before_pause, "the log goes on over a pause"

    def go_back(self) -> None:
        """An older Synapse, which can still read the database; meanwhile the leading operator crashes."""
        self.alice.carry_out("Upgrade", lambda: self.disturbed(OLD, self.operator.kill_leader), "ready", limit=LIMIT)
        self.answers(OLD)
        self.person.talk("With an older Synapse")

    def upgrade(self) -> None:
        """The newest Synapse again; the leading operator's pod is lost meanwhile."""
        self.alice.carry_out("Upgrade", lambda: self.disturbed(NEW, self.operator.lose_leader), "ready", limit=LIMIT)
        self.answers(NEW)
        self.person.talk("After the upgrade")

    def disturbed(self, release: Release, harm: Callable[..., str]) -> None:
        """Change the version, and do harm to the operator as soon as it has begun."""
        before = self.server.need(STATEFUL, "synapse-main")["metadata"]["generation"]
        self.alice.change_version(release.version)
        self.server.wait_child(
            STATEFUL, "synapse-main", lambda found: found["metadata"]["generation"] > before, seconds=LIMIT
        )
        say(f"the operator {harm(seconds=LIMIT)} was killed; {self.operator.leader()} leads")

    def change_over(self) -> None:
        """Another instance of the database takes over, and the line of backups goes on: the slot was there too."""
        stack, api = self.started(), self.node.api
        self.alice.carry_out(
            "Apply changes",
            lambda: hearth.resize(stack, self.alice.server.split("/")[-2], database_instances=2),
            "ready",
            limit=LIMIT,
        )
        cluster = api.wait("second instance", self._two_instances, seconds=LIMIT)
        status = cluster["status"]
        other = next(each for each in status["instanceNames"] if each != status["currentPrimary"])
        api.wait("slot on it", lambda: self._slots(other), seconds=LIMIT)
        # What `kubectl cnpg promote` writes.
        now = {"targetPrimary": other, "targetPrimaryTimestamp": moment(), "phase": "Switchover in progress"}
        api.patch(cluster, {"status": now}, sub="status")
        api.wait("the other primary", lambda: self._primary() == other, seconds=LIMIT)
        server = self.namespace.removeprefix("hearth-")
        line = self.line()
        self.node.api.wait(
            "log of the new timeline in the same line",
            lambda: self.backing.count(server, f"lines/{line}/wal/00000002"),
            seconds=LIMIT,
        )
        api.wait("Synapse without connections to the old primary", self._healed, seconds=LIMIT)
        self.person.talk("By another instance")
        self.server.wait("BackupReady", "True", "Written", seconds=LIMIT)

    def line(self) -> str:
        """Return the line of backups that goes on: that of the point that the status names."""
        found = self.server.wait("BackupReady", "True", "Written", seconds=LIMIT)
        points = self.backing.points(self.namespace.removeprefix("hearth-"))
        (line,) = {each["line"] for each in points if each["id"] in found["message"]}
        return str(line)

    def _healed(self) -> bool:
        """Say whether no question fails any more: each of Synapse's connections that broke costs one its answer."""
        nobody = f"{self.route()}/_matrix/client/v3/directory/room/%23nobody:{self.alice.server_name}"
        return all((answer := _get(nobody)) is not None and answer.status_code == 404 for _ in range(30))

    def _two_instances(self) -> Object | None:
        found = self.node.api.get(*CLUSTERS, "postgres", self.namespace)
        return found if found and found["status"].get("readyInstances") == 2 else None

    def _primary(self) -> str:
        found = self.node.api.get(*CLUSTERS, "postgres", self.namespace)
        return str(found["status"].get("currentPrimary")) if found else ""

    def _slots(self, pod: str) -> bool:
        """Say whether an instance has the agent's slot, as the server's own user may see there."""
        found = self.node.api.get("v1", "Pod", pod, self.namespace)
        secret = self.node.api.get("v1", "Secret", "synapse-secrets", self.namespace)
        assert found is not None
        assert secret is not None
        password = base64.b64decode(secret["data"]["password"]).decode()
        where = {"host": found["status"]["podIP"], "user": "synapse", "dbname": "synapse", "sslmode": "require"}
        with psycopg.connect(**where, password=password, connect_timeout=10) as connection:
            slots = connection.execute("SELECT slot_name FROM pg_replication_slots").fetchall()
        return ("hearth_backup",) in slots

    def delete(self) -> None:
        """Nothing is left but the backups, the last of them made before: no pod, no volume, no folder, no container."""
        assert self.node.containers(self.namespace)
        self.alice.delete()
        self.alice.wait_for_end(self.alice.server, LIMIT)
        points = self.backing.points(self.namespace.removeprefix("hearth-"))
        assert points[-1]["kind"] == "final", [each["kind"] for each in points]
        api, folders = self.node.api, self.node.folder / "volumes"
        assert api.get("v1", "Namespace", self.namespace) is None
        api.wait("end of its volumes", lambda: not api.list("v1", "PersistentVolume"), seconds=LIMIT)
        api.wait("end of their folders", lambda: not list(folders.iterdir()), seconds=LIMIT)
        api.wait("end of its containers", lambda: not self.node.containers(self.namespace), seconds=LIMIT)

    def end(self) -> None:
        """Stop Hearth as Ctrl-C does."""
        if self.stack is not None and self.stack.process is not None and self.stack.process.poll() is None:
            family = self.stack.family()
            self.stack.stop()
            assert not alive(family), f"Hearth has left {alive(family)}"

    def answers(self, release: Release) -> None:
        """The protocol checks: versions, the signing key that never changes, the release that runs."""
        assert httpx.get(f"{self.route()}/_matrix/client/versions").json()["versions"]
        assert self.signing_key() == self.key
        key_id = verify_key(self.key)[0]
        assert key_id in httpx.get(f"{self.route()}/_matrix/key/v2/server").json()["verify_keys"]
        version = httpx.get(f"{self.route()}/_matrix/federation/v1/version").json()["server"]["version"]
        assert version == release.version, version
        assert self.server.status()["version"] == release.version, self.server.status()

    def route(self) -> str:
        """Return where the server's main process answers."""
        return ROUTE.format(namespace=self.namespace)

    def signing_key(self) -> str:
        found = self.node.api.get("v1", "Secret", "synapse-secrets", self.namespace)
        assert found is not None, "the server has no Secret"
        return base64.b64decode(found["data"]["signing.key"]).decode().strip()

    def image(self, name: str) -> str:
        """Return the whole name of an image of this run."""
        return next(each for each in self.archives if each.startswith(f"localhost/{name}:"))

    def claims(self) -> dict[str, str]:
        """Return the real size of each claim."""
        found = self.node.api.list("v1", "PersistentVolumeClaim", self.namespace)
        return {each["metadata"]["name"]: each["status"].get("capacity", {}).get("storage", "") for each in found}

    def pods(self) -> list[str]:
        """Return the workload's name of each pod."""
        found = self.node.api.list("v1", "Pod", self.namespace)
        return [each["metadata"]["labels"].get("app.kubernetes.io/name", each["metadata"]["name"]) for each in found]

    def started(self) -> Stack:
        assert self.stack is not None
        return self.stack

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Time a step; where it fails, tell what is known."""
        say(f"{name} ...")
        began = time.monotonic()
        try:
            yield
        except BaseException:
            say(f"{name} FAILED after {time.monotonic() - began:.0f} s")
            with contextlib.suppress(Exception):  # the fault itself is what must be seen
                self.tell()
            raise
        self.seconds[name] = round(time.monotonic() - began, 1)
        say(f"{name}: {self.seconds[name]} s")

    def tell(self) -> None:
        """Print what helps to understand a failure."""
        for name in ("containerd", "kubelet", "kube-proxy", "coredns", "volumes"):
            say(f"--- {name}\n{self.node.tail(name, 12)}")
        if self.stack is not None:
            say("--- Hearth\n" + "".join(self.stack.lines[-25:]))
        for path in sorted((self.node.folder / STATE / "logs").glob("*.log")):
            say(f"--- Hearth: {path.name}\n" + "\n".join(path.read_text(errors="replace").splitlines()[-12:]))
        for namespace in filter(None, ("cnpg-system", NAMESPACE, getattr(self, "namespace", ""))):
            say(f"--- pods of {namespace}")
            for line in (*self.node.pods(namespace), *self.node.events(namespace)[-40:]):
                say(f"  {line}")
            say(self.node.log(namespace, "", 25))
        for each in self.node.api.list(*SERVER):
            say(json.dumps(each.get("status"), indent=1))


def moment() -> str:
    """Return this moment as Kubernetes writes it, with parts of a second."""
    return dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


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
    with Node(folder) as node, Backing(folder, ADDRESS) as backing:
        scenario = Scenario(node, {name: Path(path) for name, path in archives.items()}, backing)
        scenario.run()
    say(json.dumps({"ok": True, "total_s": round(time.monotonic() - began, 1)} | scenario.seconds))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
