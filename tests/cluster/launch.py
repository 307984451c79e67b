"""A real Kubernetes control plane on loopback: etcd, API server, controllers, scheduler, and kwok in place of kubelets.

Every process is a child of the one that made the `Cluster` and gets SIGKILL when that one dies; its data lie in a
folder under /tmp that the next start removes if nobody holds it any more. Make a `Cluster` in the main thread: the
death signal is bound to the thread that starts a child.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO

import yaml

from provisioning.providers.local.processes import Command, spawn_argv
from tests.bench.floor import free_ports
from tests.cluster.api import Api
from tests.cluster.certificates import Authority, signed_token, signing_pair
from tests.cluster.furnish import furnish
from tests.cluster.tools import CLUSTER, find
from tests.lasting import Lasting

ROOT = Path(__file__).resolve().parents[2]
PREFIX = "hearth-cluster-"
LOOPBACK = "127.0.0.1"
SERVICE = "10.96.0.1"
"""The address of the Service `kubernetes`: the first of its range."""
MASTERS = "system:masters"
ISSUER = "https://kubernetes.default.svc"
_TRIES = 5
_LIMIT = 120.0
"""Seconds; three on a quiet machine."""
_GARBAGE = {"GOGC": "400", "GOMEMLIMIT": "1536MiB"}
"""When Go's programs collect: collecting as often as by default is a fifth of the API server's work."""


class Cluster(Lasting):
    """One control plane. `start` returns when it answers; `kubeconfig` is the path of an administrator's.

    kwok plays `nodes` nodes and the pods on them; with 0 there is no kwok, and pods stay pending. For a real node the
    API server listens on another `address` than loopback, which pods can reach, and real `databases` need no stand-in.
    Its folder lies in `parent`.
    """

    def __init__(
        self, *, nodes: int = 3, address: str = LOOPBACK, databases: bool = False, parent: Path = Path("/tmp")
    ) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
        self._lock = (self.folder / ".lock").open("w")
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self.logs = self.folder / "logs"
        self.logs.mkdir()
        self.port = 0
        self.authority = Authority("test cluster")
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._nodes = nodes
        self._address = address
        self._stand_ins = ["--no-databases"] if databases else []
        self._programs = {name: [str(find(name))] for name in CLUSTER if nodes or name != "kwok"}
        self._programs["stand-ins"] = [sys.executable, "-m", "tests.cluster.stand_ins"]
        self._api: Api | None = None

    @property
    def url(self) -> str:
        return f"https://{self._address}:{self.port}"

    @property
    def kubeconfig(self) -> Path:
        return self.folder / "kubeconfig"

    @property
    def api(self) -> Api:
        """A small client with all rights."""
        if self._api is None:
            self._api = Api.from_kubeconfig(self.kubeconfig)
        return self._api

    def start(self) -> float:
        """Start everything; return the seconds until the API server was ready and all else was started."""
        started = time.monotonic()
        sweep()
        self._write_keys()
        self._spawn("etcd", *self._etcd())
        for _ in range(_TRIES):
            # Somebody may take the port between our look and the API server's: then it ends, and we look again.
            self.port = free_ports(1)[0]
            self._forget_api()
            self._write_kubeconfig()
            self._spawn("kube-apiserver", *self._api_server())
            if self._wait_ready():
                break
        else:
            raise self._failed("kube-apiserver")
        self._spawn("kube-controller-manager", *self._controllers())
        self._spawn("kube-scheduler", *self._scheduler())
        if self._nodes:
            self._spawn("kwok", *self._kwok_flags())
        furnish(self.api, nodes=self._nodes)
        self._spawn("stand-ins", str(self.kubeconfig), *self._stand_ins)
        return time.monotonic() - started

    def stop(self) -> None:
        """End all processes by their pids and remove the folder."""
        self._forget_api()
        for process in self.processes.values():
            process.kill()
        for process in self.processes.values():
            process.wait()
        self.processes.clear()
        self._lock.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def stop_api_server(self, end: signal.Signals = signal.SIGTERM, *, grace: float = 5) -> None:
        """End the API server; etcd keeps the data. SIGKILL is a crash.

        After SIGTERM it ends watches, refuses what is new with 429 and waits for idle connections, which those of
        other programs here never are: so SIGKILL follows after `grace` seconds.
        """
        process = self.processes.pop("kube-apiserver")
        process.send_signal(end)
        try:
            process.wait(grace)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def start_api_server(self) -> float:
        """Start it again on the same port and data; return the seconds until it was ready."""
        started = time.monotonic()
        self._spawn("kube-apiserver", *self._api_server())
        if not self._wait_ready():
            raise self._failed("kube-apiserver")
        return time.monotonic() - started

    def restart_api_server(self, end: signal.Signals = signal.SIGTERM) -> float:
        """Stop and start it; return the seconds in which it did not answer."""
        started = time.monotonic()
        self.stop_api_server(end)
        self.start_api_server()
        return time.monotonic() - started

    def short_token(self, namespace: str, account: str, *, seconds: float) -> str:
        """Return a service account's token that ends after `seconds`, which may be less than the API server grants.

        The API server remembers a token that it found good for up to 10 s.
        """
        found = self.api.get("v1", "ServiceAccount", account, namespace)
        if found is None:
            raise LookupError(f"there is no service account {namespace}/{account}")
        now = int(time.time())
        claims = {
            "iss": ISSUER,
            "aud": [ISSUER],
            "sub": f"system:serviceaccount:{namespace}:{account}",
            "iat": now,
            "nbf": now - 5,
            "exp": now + seconds,
            "kubernetes.io": {
                "namespace": namespace,
                "serviceaccount": {"name": account, "uid": found["metadata"]["uid"]},
            },
        }
        return signed_token((self.folder / "tokens.key").read_bytes(), claims)

    def tail(self, name: str, lines: int = 30) -> str:
        """Return the end of a program's log."""
        path = self.logs / f"{name}.log"
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:]) if path.exists() else ""

    def _forget_api(self) -> None:
        if self._api is not None:
            self._api.close()
            self._api = None

    def _write_keys(self) -> None:
        server = self.authority.issue(
            "kube-apiserver", hosts=(self._address, SERVICE, "localhost", "kubernetes.default.svc")
        )
        tokens = signing_pair()
        files = {
            "ca.crt": self.authority.certificate,
            "server.crt": server.certificate,
            "server.key": server.key,
            "tokens.pub": tokens.certificate,
            "tokens.key": tokens.key,
        }
        for name, content in files.items():
            _write(self.folder / name, content)

    def _write_kubeconfig(self) -> None:
        pair = self.authority.issue("hearth-tests", groups=(MASTERS,))
        _write(self.folder / "client.crt", pair.certificate)
        _write(self.folder / "client.key", pair.key)
        user = {
            "client-certificate": str(self.folder / "client.crt"),
            "client-key": str(self.folder / "client.key"),
        }
        write_kubeconfig(self.kubeconfig, self.url, self.folder / "ca.crt", user)

    def _etcd(self) -> list[str]:
        # Unix sockets: no port that could be taken. What etcd advertises is never dialled, it is alone.
        return [
            f"--data-dir={self.folder / 'etcd'}",
            "--listen-client-urls=unix://etcd:0",
            "--advertise-client-urls=unix://etcd:0",
            "--listen-peer-urls=unix://peer:0",
            "--unsafe-no-fsync",
            "--log-level=warn",
            "--quota-backend-bytes=4294967296",
        ]

    def _api_server(self) -> list[str]:
        folder = self.folder
        return [
            "--etcd-servers=unix://etcd:0",
            f"--secure-port={self.port}",
            f"--bind-address={self._address}",
            f"--advertise-address={self._address}",
            # Pods find it by the Service `kubernetes`, whose endpoint can't be loopback.
            f"--endpoint-reconciler-type={'none' if self._address == LOOPBACK else 'lease'}",
            f"--client-ca-file={folder}/ca.crt",
            f"--tls-cert-file={folder}/server.crt",
            f"--tls-private-key-file={folder}/server.key",
            "--authorization-mode=Node,RBAC",
            f"--service-account-issuer={ISSUER}",
            f"--service-account-key-file={folder}/tokens.pub",
            f"--service-account-signing-key-file={folder}/tokens.key",
            "--service-cluster-ip-range=10.96.0.0/12",
            "--allow-privileged=true",
            "--profiling=false",
        ]

    def _controllers(self) -> list[str]:
        return [
            f"--kubeconfig={self.kubeconfig}",
            "--leader-elect=false",
            "--secure-port=0",
            f"--service-account-private-key-file={self.folder}/tokens.key",
            f"--root-ca-file={self.folder}/ca.crt",
            "--kube-api-qps=300",
            "--kube-api-burst=600",
            # kwok's nodes give a sign only once a minute: at the default of 50 s they and their pods flap.
            "--node-monitor-grace-period=10m",
            "--profiling=false",
        ]

    def _scheduler(self) -> list[str]:
        rates = ["--kube-api-qps=300", "--kube-api-burst=600"]
        # The scheduler's queue may hear of a new volume before the cache that it asks about volumes does. In a busy
        # cluster the next volume's event mends that; in ours the pod would wait for the flush after five minutes.
        retries = ["--feature-gates=SchedulerPopFromBackoffQ=false", "--pod-max-in-unschedulable-pods-duration=5s"]
        return [
            f"--kubeconfig={self.kubeconfig}",
            "--leader-elect=false",
            "--secure-port=0",
            "--profiling=false",
            *rates,
            *retries,
        ]

    def _kwok_flags(self) -> list[str]:
        # A real node may be there too: only nodes with our label are kwok's.
        return [
            f"--kubeconfig={self.kubeconfig}",
            "--manage-all-nodes=false",
            "--manage-nodes-with-label-selector=type=kwok",
            "--cidr=10.0.0.1/16",
        ]

    def _spawn(self, name: str, *flags: str) -> None:
        command = Command(name, (*self._programs[name], *flags), self.folder, {})
        with _log(self.logs / f"{name}.log") as log:
            self.processes[name] = subprocess.Popen(
                spawn_argv(command),
                cwd=self.folder,
                # No proxy of the machine, and no kubeconfig of a person.
                env={"HOME": str(self.folder), "PATH": os.defpath, "PYTHONPATH": str(ROOT)} | _GARBAGE,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _wait_ready(self) -> bool:
        """Wait until the API server is ready; return False if it ended because its port was taken."""
        process = self.processes["kube-apiserver"]
        end = time.monotonic() + _LIMIT
        while time.monotonic() < end:
            if process.poll() is not None:
                if "address already in use" in self.tail("kube-apiserver", 100):
                    return False
                raise self._failed("kube-apiserver")
            if self.api.ready():
                return True
            time.sleep(0.05)
        raise self._failed("kube-apiserver")

    def _failed(self, name: str) -> RuntimeError:
        return RuntimeError(f"{name} of the test cluster did not start. Its last lines:\n{self.tail(name)}")


def write_kubeconfig(place: Path, url: str, authority: Path, user: dict[str, str]) -> None:
    """Write a kubeconfig (mode 0600) with one cluster and one user, both named `hearth`."""
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "hearth", "cluster": {"server": url, "certificate-authority": str(authority)}}],
        "users": [{"name": "hearth", "user": user}],
        "contexts": [{"name": "hearth", "context": {"cluster": "hearth", "user": "hearth"}}],
        "current-context": "hearth",
    }
    _write(place, yaml.safe_dump(content).encode())


def _write(place: Path, content: bytes) -> None:
    place.touch(mode=0o600)
    place.write_bytes(content)


def _log(path: Path) -> IO[bytes]:
    return path.open("ab")


def sweep() -> None:
    """Remove folders of clusters whose process was killed: nobody holds their lock any more."""
    for folder in Path("/tmp").glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError), (folder / ".lock").open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
