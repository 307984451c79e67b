"""A real node: containerd, kubelet, kube-proxy and CoreDNS beside a test cluster, inside the run's own namespaces.

Everything lies in one folder. Addresses: the node's on a bridge without ports, pods' behind it, all in the run's
network namespace, which has no way out: nothing is pulled, no pod reaches anything but this node.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import yaml

from provisioning.providers.local.processes import Command, spawn_argv
from tests.cluster import definitions
from tests.cluster.api import Api, Object
from tests.cluster.launch import Cluster, write_kubeconfig
from tests.cluster.tools import find
from tests.lasting import Lasting
from tests.node.namespaces import in_memory
from tests.node.volumes import NODE, storage_class

ROOT = Path(__file__).resolve().parents[2]
ADDRESS = "10.87.0.1"
PODS = "10.88.0.0/24"
SERVICES = "10.96.0.0/12"
WIDEST = 400
"""Characters of one line of a log that is shown."""
CPUS = 8
"""What the node offers, so that the smallest server and its database fit; a machine for tests may have two."""
PLUGINS = "/usr/lib/cni"
CNPG = "github.com/cloudnative-pg/cloudnative-pg"


class Node(Lasting):
    """The control plane and the node. `folder` must be the run's own; its name is that of the control groups too."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.logs = folder / "logs"
        self.cluster = Cluster(nodes=0, address=ADDRESS, databases=True, parent=folder)
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def api(self) -> Api:
        """A small client with all rights."""
        return self.cluster.api

    @property
    def socket(self) -> Path:
        return self.folder / "containerd.sock"

    def start(self) -> None:
        """Start everything; return when the node is Ready."""
        for name in ("logs", "cni", "volumes", "kubelet", "pods", "images"):
            (self.folder / name).mkdir()
        in_memory(self.folder / "images")
        _network()
        self.cluster.start()
        self._write()
        self._spawn("containerd", "containerd", "-c", str(self.folder / "containerd.toml"))
        self._wait("containerd", self.socket.exists)
        self._spawn("kubelet", str(find("kubelet")), *self._kubelet())
        self._spawn("kube-proxy", str(find("kube-proxy")), f"--config={self.folder / 'proxy.yaml'}")
        self._spawn("coredns", str(find("coredns")), "-conf", str(self.folder / "Corefile"))
        self._spawn(
            "volumes",
            sys.executable,
            "-m",
            "tests.node.volumes",
            *map(str, (self.cluster.kubeconfig, self.folder / "volumes")),
        )
        self.api.apply(storage_class())

    def load(self, archives: Iterable[Path]) -> None:
        """Give the node its images."""
        for archive in archives:
            words = ["ctr", "-a", str(self.socket), "-n", "k8s.io", "images", "import", str(archive)]
            subprocess.run(words, check=True, stdout=subprocess.DEVNULL, timeout=300)

    def wait_ready(self, *, seconds: float = 120) -> None:
        """Wait until the node takes pods, and let it offer more than it has."""
        node = self.api.wait("node that is Ready", self._ready, seconds=seconds)
        self.api.patch(
            node, {"status": {name: {"cpu": str(CPUS)} for name in ("capacity", "allocatable")}}, sub="status"
        )

    def install_cloudnative_pg(self, image: str) -> None:
        """Apply CloudNativePG's own manifest, with the image made here."""
        source = definitions.folder(CNPG) / "releases" / "cnpg-1.27.0.yaml"
        objects = [each for each in yaml.load_all(source.read_text(), yaml.CSafeLoader) if each]
        # The definitions are there since the cluster's start.
        for each in (each for each in objects if each["kind"] != "CustomResourceDefinition"):
            if each["kind"] == "Deployment":
                container = each["spec"]["template"]["spec"]["containers"][0]
                container |= {"image": image, "imagePullPolicy": "IfNotPresent"}
                # A tenth of a core is too little to start within its probe on a machine that others use too.
                container["resources"]["limits"]["cpu"] = "1"
                for variable in container["env"]:
                    if variable["name"] == "OPERATOR_IMAGE_NAME":
                        variable["value"] = image
            self.api.apply(each)

    def wait_cloudnative_pg(self, *, seconds: float = 180) -> None:
        """Wait until its operator answers the API server's questions about Clusters."""

        def available() -> bool:
            found = self.api.get("apps/v1", "Deployment", "cnpg-controller-manager", "cnpg-system")
            return bool(found and found.get("status", {}).get("availableReplicas"))

        self.api.wait("CloudNativePG's operator", available, seconds=seconds)

    def pods(self, namespace: str) -> list[str]:
        """Return a line about each pod of a namespace."""
        lines = []
        for pod in self.api.list("v1", "Pod", namespace):
            status = pod.get("status", {})
            states = [each for name in ("initContainerStatuses", "containerStatuses") for each in status.get(name, [])]
            said = " ".join(f"{each['name']}={json.dumps(each['state'])}" for each in states)
            lines.append(f"{pod['metadata']['name']} {status.get('phase')} {said}"[:600])
        return lines

    def events(self, namespace: str) -> list[str]:
        """Return a line about each thing that was told about a namespace's objects."""
        found = self.api.list("v1", "Event", namespace)
        return [
            f"{each['involvedObject']['kind']}/{each['involvedObject']['name']} {each['reason']}: {each['message']}"
            for each in found
        ]

    def log(self, namespace: str, pod: str, lines: int = 40) -> str:
        """Return the end of what a pod's containers wrote."""
        found = []
        for path in sorted((self.folder / "pods").glob(f"{namespace}_{pod}*/*/*.log")):
            found += [f"== {path.parent.name} {path.name}", *path.read_text(errors="replace").splitlines()[-lines:]]
        return "\n".join(each[:WIDEST] for each in found)

    def kill_container(self, name: str) -> None:
        """End a container's first process with SIGKILL, without telling the kubelet."""
        words = ["ctr", "-a", str(self.socket), "-n", "k8s.io", "tasks", "kill", "--signal", "SIGKILL", name]
        subprocess.run(words, check=True, timeout=60)

    def containers(self, namespace: str) -> list[str]:
        """Return the ids of all containers of a namespace that are there, without the pods' own."""
        wanted = f'labels."io.cri-containerd.kind"==container,labels."io.kubernetes.pod.namespace"=={namespace}'
        words = ["ctr", "-a", str(self.socket), "-n", "k8s.io", "containers", "list", "-q", wanted]
        return subprocess.run(words, check=True, capture_output=True, text=True, timeout=60).stdout.split()

    def tail(self, name: str, lines: int = 30) -> str:
        """Return the end of a program's log."""
        path = self.logs / f"{name}.log"
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:]) if path.exists() else ""

    def stop(self) -> None:
        """End the programs by their pids. Containers, mounts and addresses go with the run's namespaces."""
        for process in reversed(self.processes.values()):
            process.kill()
            process.wait()
        self.processes.clear()
        self.cluster.stop()

    def _ready(self) -> Object | None:
        self._alive()
        found = self.api.get("v1", "Node", NODE)
        conditions = (found or {}).get("status", {}).get("conditions", [])
        return found if any(each["type"] == "Ready" and each["status"] == "True" for each in conditions) else None

    def _alive(self) -> None:
        for name, process in self.processes.items():
            if process.poll() is not None:
                raise RuntimeError(f"{name} of the real node ended. Its last lines:\n{self.tail(name)}")

    def _wait(self, what: str, condition: Callable[[], bool]) -> None:
        end = time.monotonic() + 60
        while not condition():
            self._alive()
            if time.monotonic() > end:
                raise RuntimeError(f"{what} of the real node did not start:\n{self.tail(what)}")
            time.sleep(0.05)

    def _kubelet(self) -> list[str]:
        return [
            f"--config={self.folder / 'kubelet.yaml'}",
            f"--kubeconfig={self._kubeconfig(f'system:node:{NODE}', 'system:nodes')}",
            f"--root-dir={self.folder / 'kubelet'}",
            f"--cert-dir={self.folder / 'kubelet' / 'pki'}",
            f"--hostname-override={NODE}",
            f"--node-ip={ADDRESS}",
        ]

    def _write(self) -> None:
        files = {
            "containerd.toml": self._containerd(),
            "cni/10-pods.conflist": json.dumps(_pod_network()),
            "kubelet.yaml": yaml.safe_dump(self._kubelet_configuration()),
            "proxy.yaml": yaml.safe_dump(self._proxy_configuration()),
            "Corefile": f"""cluster.local:53 {{
    bind {ADDRESS}
    errors
    kubernetes cluster.local {{
        endpoint {self.cluster.url}
        kubeconfig {self.cluster.kubeconfig} hearth
    }}
}}
""",
            # Programs outside of pods, such as the operator, find Services by their names too.
            "resolv.conf": f"nameserver {ADDRESS}\nsearch svc.cluster.local cluster.local\noptions ndots:5\n",
        }
        for name, text in files.items():
            (self.folder / name).write_text(text)
        _mount(self.folder / "resolv.conf", Path("/etc/resolv.conf").resolve())

    def _containerd(self) -> str:
        return f"""version = 2
root = "{self.folder}/images"
state = "{self.folder}/state"
disabled_plugins = ["io.containerd.internal.v1.opt"]
[grpc]
  address = "{self.socket}"
[plugins."io.containerd.grpc.v1.cri"]
  restrict_oom_score_adj = true
  sandbox_image = "localhost/pause:1"
  enable_unprivileged_ports = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{PLUGINS}"
    conf_dir = "{self.folder}/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
"""

    def _kubelet_configuration(self) -> Object:
        return {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": f"/{self.folder.name}",
            "failCgroupV1": False,
            "failSwapOn": False,
            "containerRuntimeEndpoint": f"unix://{self.socket}",
            "clusterDNS": [ADDRESS],
            "clusterDomain": "cluster.local",
            "resolvConf": "",
            "authentication": {
                "anonymous": {"enabled": False},
                "webhook": {"enabled": True},
                "x509": {"clientCAFile": str(self.cluster.folder / "ca.crt")},
            },
            "authorization": {"mode": "Webhook"},
            # A test's machine may be rather full; nothing is to be evicted for that.
            "evictionHard": {"nodefs.available": "1%", "imagefs.available": "1%", "memory.available": "100Mi"},
            # Once Ready the node's lease says that it lives; a later report would take back the CPUs that it pretends.
            "nodeStatusUpdateFrequency": "24h",
            "nodeStatusReportFrequency": "24h",
            "podLogsDir": str(self.folder / "pods"),
            "oomScoreAdj": 0,
        }

    def _proxy_configuration(self) -> Object:
        return {
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "mode": "iptables",
            "hostnameOverride": NODE,
            "clusterCIDR": PODS,
            "clientConnection": {"kubeconfig": str(self._kubeconfig("system:kube-proxy"))},
            # These limits belong to the machine and can't be set from here.
            "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
            "oomScoreAdj": 0,
        }

    def _kubeconfig(self, user: str, *groups: str) -> Path:
        """Write a kubeconfig of a user of the cluster, and return its path."""
        place = self.folder / f"{user.replace(':', '-')}.kubeconfig"
        pair = self.cluster.authority.issue(user, groups=groups)
        files = {"client-certificate": pair.certificate, "client-key": pair.key}
        for name, content in files.items():
            place.with_suffix(f".{name}").touch(mode=0o600)
            place.with_suffix(f".{name}").write_bytes(content)
        paths = {name: str(place.with_suffix(f".{name}")) for name in files}
        write_kubeconfig(place, self.cluster.url, self.cluster.folder / "ca.crt", paths)
        return place

    def _spawn(self, name: str, *argv: str) -> None:
        environment: Mapping[str, str] = {
            "HOME": str(self.folder),
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "PYTHONPATH": str(ROOT),
            "TMPDIR": str(self.folder),
        }
        with (self.logs / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                spawn_argv(Command(name, argv, self.folder, environment)),
                cwd=self.folder,
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )


def _network() -> None:
    """Give the run's own network namespace its addresses."""
    for words in (
        "ip link set lo up",
        "ip link add node0 type bridge",
        f"ip address add {ADDRESS}/32 dev node0",
        "ip link set node0 up",
        # Never used as it stands: kube-proxy's rules turn it into a pod's. Without a route there is no packet to turn.
        f"ip route add {SERVICES} dev node0",
    ):
        subprocess.run(words.split(), check=True, timeout=20)
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")


def _pod_network() -> Object:
    """Return what the plugins do for each pod: a pair of interfaces, routed by the node so that Services work."""
    ranges = [[{"subnet": PODS}]]
    plugin = {
        "type": "ptp",
        "ipMasq": False,
        "ipam": {
            "type": "host-local",
            "ranges": ranges,
            "routes": [{"dst": "0.0.0.0/0"}],
            "dataDir": "/run/hearth-cni",
        },
    }
    return {"cniVersion": "0.4.0", "name": "pods", "plugins": [plugin]}


def _mount(source: Path, target: Path) -> None:
    if not target.exists():  # below /run, which is empty
        target.parent.mkdir(parents=True, exist_ok=True)
        target.touch()
    subprocess.run(["mount", "--bind", str(source), str(target)], check=True, timeout=20)
