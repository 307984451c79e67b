"""Volumes for the real node, in a process of its own: claims of the class `node` become folders that can grow.

They are volumes of the type `local`, so kubelet treats them as it treats a disk: mounted into the pod, and given to the
pod's fsGroup. Nothing holds a folder to its size.
"""

from __future__ import annotations

import asyncio
import shutil
import sys
from pathlib import Path

import httpx

from tests.cluster.api import Object, connection
from tests.cluster.certificates import Authority
from tests.cluster.stand_ins import CLAIMS, VOLUMES, Act, StandIns

PROVISIONER = "folders.tests.hearth.host"
CLASS = "node"
NODE = "real"
MARK = "pv.kubernetes.io/provisioned-by"


def storage_class() -> Object:
    """Return the class."""
    return {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {"name": CLASS},
        "provisioner": PROVISIONER,
        "allowVolumeExpansion": True,
    }


class Volumes(StandIns):
    """Makes, grows and removes them below `folder`."""

    folder: Path

    def acts(self) -> dict[str, Act]:
        return {CLAIMS: self.claim, VOLUMES: self.volume}

    async def claim(self, each: Object) -> None:
        """Give a claim of our class a volume; let a bound one grow."""
        meta, spec, status = each["metadata"], each["spec"], each.get("status", {})
        if spec.get("storageClassName") != CLASS or meta.get("deletionTimestamp"):
            return
        size, name = spec["resources"]["requests"]["storage"], f"node-{meta['uid']}"
        if status.get("phase") != "Bound":
            (self.folder / name).mkdir(mode=0o755, exist_ok=True)
            await self._apply(f"{VOLUMES}/{name}", self._volume(name, each))
        elif status.get("capacity", {}).get("storage") != size:
            await self._patch(f"{VOLUMES}/{name}", {"spec": {"capacity": {"storage": size}}})
            await self._say(each, CLAIMS, {"capacity": {"storage": size}})

    async def volume(self, each: Object) -> None:
        """Remove a volume whose claim is gone, and its folder."""
        meta = each["metadata"]
        if meta.get("annotations", {}).get(MARK) == PROVISIONER and each.get("status", {}).get("phase") == "Released":
            await asyncio.to_thread(shutil.rmtree, self.folder / meta["name"], ignore_errors=True)
            await self.http.delete(f"{VOLUMES}/{meta['name']}")

    def _volume(self, name: str, claim: Object) -> Object:
        meta, spec = claim["metadata"], claim["spec"]
        here = {"key": "kubernetes.io/hostname", "operator": "In", "values": [NODE]}
        return {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": name, "annotations": {MARK: PROVISIONER}},
            "spec": {
                "capacity": {"storage": spec["resources"]["requests"]["storage"]},
                "accessModes": spec["accessModes"],
                "storageClassName": CLASS,
                # Delete would ask for a driver that deletes; `volume` above does it.
                "persistentVolumeReclaimPolicy": "Retain",
                "claimRef": {
                    "apiVersion": "v1",
                    "kind": "PersistentVolumeClaim",
                    "namespace": meta["namespace"],
                    "name": meta["name"],
                    "uid": meta["uid"],
                },
                "local": {"path": str(self.folder / name)},
                "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [here]}]}},
            },
        }


async def main(kubeconfig: Path, folder: Path) -> None:
    """Run until killed."""
    url, verify, headers = connection(kubeconfig)
    async with httpx.AsyncClient(base_url=url, verify=verify, headers=headers, timeout=30, trust_env=False) as http:
        volumes = Volumes(http, Authority("unused"))
        volumes.folder = folder
        await volumes.run()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), Path(sys.argv[2])))
