"""Hearth's operator on the real node: its image in pods, installed by its chart as a customer would."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

from tests.cluster.api import Object
from tests.cluster.tools import find
from tests.node.machine import Node
from tests.operator.servers import LABELS

DEPLOY = Path(__file__).resolve().parents[2] / "platform" / "deploy"
NAMESPACE = "hearth"
NAME = "hearth-operator"
DEFINITION = ("apiextensions.k8s.io/v1", "CustomResourceDefinition", "matrixservers.hearth.host")


class Operator:
    """The release `hearth` in the namespace `hearth`, which Pod Security holds to `restricted`."""

    def __init__(self, node: Node, image: str) -> None:
        self.node = node
        self.image = image

    def install(self) -> None:
        """Install the chart. It brings the definition of a MatrixServer, so the test cluster's goes first."""
        api = self.node.api
        api.delete(*DEFINITION)
        api.wait("end of the test cluster's definition", lambda: api.get(*DEFINITION) is None)
        api.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE, "labels": LABELS}})
        words = ["install", "hearth", str(DEPLOY), "--namespace", NAMESPACE, "--set", f"operator.image={self.image}"]
        done = subprocess.run(
            [str(find("helm")), *words, "--kubeconfig", str(self.node.cluster.kubeconfig)],
            check=False,
            capture_output=True,
            text=True,
            env={"HOME": str(self.node.folder), "PATH": "/usr/bin:/bin"},
            timeout=120,
        )
        assert done.returncode == 0, done.stderr

    def wait_ready(self, *, seconds: float) -> None:
        """Wait until all its pods are ready and one of them leads."""

        def ready() -> bool:
            found = self.node.api.get("apps/v1", "Deployment", NAME, NAMESPACE)
            return bool(found and found.get("status", {}).get("readyReplicas") == found["spec"]["replicas"])

        self.node.api.wait("ready operator", ready, seconds=seconds)
        self.node.api.wait("leader among the operators", lambda: self.leader() in self.pods(), seconds=seconds)

    def pods(self) -> dict[str, Object]:
        """Return its pods by name."""
        return {each["metadata"]["name"]: each for each in self.node.api.list("v1", "Pod", NAMESPACE)}

    def leader(self) -> str:
        """Return the name of the pod that acts."""
        lease = self.node.api.get("coordination.k8s.io/v1", "Lease", NAME, NAMESPACE)
        return str(((lease or {}).get("spec") or {}).get("holderIdentity") or "")

    def kill_leader(self, *, seconds: float) -> str:
        """End the leader's container as a crash would, wait until it runs again, and return the pod's name."""
        name, before = self._kill()

        def again() -> bool:
            found = self._container(self.pods()[name])
            return bool(found.get("restartCount", 0) > before["restartCount"] and found.get("started"))

        self.node.api.wait("new container of the operator", again, seconds=seconds)
        self.node.api.wait("leader among the operators", lambda: self.leader() in self.pods(), seconds=seconds)
        return name

    def lose_leader(self, *, seconds: float) -> str:
        """Lose the leader's pod at once, as with its node; wait until another leads, and return the pod's name."""
        name, _ = self._kill()
        path = self.node.api.path("v1", "Pod", NAMESPACE, name)
        self.node.api.request("DELETE", path, json={"gracePeriodSeconds": 0})
        self.node.api.wait("another leader", lambda: self.leader() in self.pods().keys() - {name}, seconds=seconds)
        return name

    def _kill(self) -> tuple[str, dict[str, Any]]:
        name = self.leader()
        found = self._container(self.pods()[name])
        self.node.kill_container(str(found["containerID"]).partition("://")[2])
        return name, found

    @staticmethod
    def _container(pod: Object) -> dict[str, Any]:
        found = pod.get("status", {}).get("containerStatuses") or [{}]
        return dict(found[0])
