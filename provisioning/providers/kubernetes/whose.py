"""Which cluster this is, and which Hearth a server belongs to: asked before anything of a server is touched.

Fences are numbers of one database, so they tell nothing apart that has two: a copy of Hearth with the same kubeconfig,
or a kubeconfig of another cluster, in which all servers would look gone.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from provisioning.providers.base import ProviderError
from provisioning.providers.kubernetes.client import SAFE, Client

INSTALLATION = "hearth.host/installation"
"""On a server's Namespace and MatrixServer: what the Hearth is called that made them."""
SYSTEM = "/api/v1/namespaces/kube-system"
ANOTHER = "That is another cluster than the one in which this region's servers are."


def uid_of(client: Client, *, patience: float | None = None) -> str:
    """Return what tells one cluster from all others, for as long as it exists."""
    return str(client.request("GET", SYSTEM, patience=patience)["metadata"]["uid"])


class Whose:
    """Keeps to one cluster and to one Hearth's servers. `known` is the cluster's uid, or empty until `learn` keeps it.

    `learn` takes what was seen and returns what is known then.
    """

    def __init__(self, client: Client, installation: str, known: str, learn: Callable[[str], str]) -> None:
        self._client, self._installation, self._known, self._learn = client, installation, known, learn
        self._lock, self._seen = threading.Lock(), False

    def cluster(self, *, patience: float | None = None) -> None:
        """Refuse another cluster. Asked once: another way in makes another provider."""
        with self._lock:
            if self._seen:
                return
            uid = uid_of(self._client, patience=patience)
            if uid != (self._known or self._learn(uid)):
                raise ProviderError(
                    f"{ANOTHER} Nothing was touched, and servers go on running where they are. Staff must give the "
                    "region a kubeconfig of its own cluster.",
                    code="AnotherCluster",
                    retry=False,
                )
            self._seen = True

    def server(self, found: dict[str, Any] | None) -> None:
        """Refuse a server's object that another Hearth made."""
        other = self.other(found)
        if other:
            raise ProviderError(
                f"This server belongs to another Hearth, “{other}”. Nothing was touched. {SAFE} A copy of Hearth must "
                "not work on the servers of the one it was copied from; if this is the same one under another name, "
                "set HEARTH_INSTALLATION to the former.",
                code="AnotherHearth",
                retry=False,
            )

    def known(self, found: dict[str, Any] | None) -> bool:
        """Say whether an object tells that it is ours, or nobody asks; false for one from before Hearth wrote it."""
        return not self._installation or _told(found) == self._installation

    def mark(self) -> dict[str, Any]:
        """Return the change that makes an object ours."""
        return {"metadata": {"annotations": {INSTALLATION: self._installation}}}

    def other(self, found: dict[str, Any] | None) -> str:
        """Return the name of the other Hearth that an object belongs to; empty for ours and for those of nobody."""
        told = _told(found)
        return told if self._installation and told != self._installation else ""


def _told(found: dict[str, Any] | None) -> str:
    return str(((found or {}).get("metadata", {}).get("annotations") or {}).get(INSTALLATION) or "")
