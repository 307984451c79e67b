"""What other people's controllers would do in a real cluster, as far as tests need it. A process of its own.

cert-manager's controller, a storage driver, CloudNativePG's operator and a load balancer can't run beside an API server
without containers. In their place: Certificates are signed by a test authority, claims of the storage class `test` get
volumes and grow, CloudNativePG Clusters are said to be healthy (or hibernated), Ingresses and load balancers get an
address. An object with the annotation `tests.hearth.host/hands-off` is left alone, so that a test can play a fault.
An issuer whose name begins with `broken` never signs.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import datetime
import json
import sys
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from tests.cluster.api import MERGE, Object, connection
from tests.cluster.certificates import Authority, Pair

HANDS_OFF = "tests.hearth.host/hands-off"
PROVISIONER = "volumes.tests.hearth.host"
ADDRESS = "192.0.2.1"  # of the range for documentation: nobody answers there
MANAGER = "hearth-stand-ins"
LIFE = datetime.timedelta(days=90)

CERTIFICATES = "/apis/cert-manager.io/v1/certificates"
ISSUERS = "/apis/cert-manager.io/v1/namespaces/{}/issuers"
CLUSTER_ISSUERS = "/apis/cert-manager.io/v1/clusterissuers"
CERT_MANAGER = "cert-manager"
"""The namespace in which the Secrets of ClusterIssuers lie."""
CLAIMS = "/api/v1/persistentvolumeclaims"
VOLUMES = "/api/v1/persistentvolumes"
CLUSTERS = "/apis/postgresql.cnpg.io/v1/clusters"
SERVICES = "/api/v1/services"
INGRESSES = "/apis/networking.k8s.io/v1/ingresses"
Act = Callable[[Object], Coroutine[Any, Any, None]]


@dataclass
class StandIns:
    """All of them, on one connection."""

    http: httpx.AsyncClient
    authority: Authority
    databases: bool = True

    async def run(self) -> None:
        """Watch and act until cancelled."""
        async with asyncio.TaskGroup() as group:
            for path, act in self.acts().items():
                group.create_task(self._follow(path, act))

    def acts(self) -> dict[str, Act]:
        """Return what is done for each object of a list."""
        always: dict[str, Act] = {
            CERTIFICATES: self.certificate,
            CLAIMS: self.claim,
            VOLUMES: self.volume,
            SERVICES: self.service,
            INGRESSES: self.ingress,
        }
        return always | ({CLUSTERS: self.cluster} if self.databases else {})

    async def certificate(self, each: Object) -> None:
        """Sign a Certificate: write the Secret it names, then its status."""
        meta, spec = each["metadata"], each["spec"]
        place = f"/api/v1/namespaces/{meta['namespace']}/secrets"
        if spec["issuerRef"]["name"].startswith("broken"):
            message = "The certificate request has failed to complete and will be retried: the issuer refused."
            await self._say(each, CERTIFICATES, {"conditions": [_condition("Ready", False, "Failed", message, meta)]})
            return
        there = await self.http.get(f"{place}/{spec['secretName']}")
        ready = any(one["type"] == "Ready" and one["status"] == "True" for one in _conditions(each))
        seen = any(one.get("observedGeneration") == meta.get("generation") for one in _conditions(each))
        if there.status_code == 200 and ready and seen:
            return
        signer = await self._signer(each)
        pair = signer.pair if spec.get("isCA") else signer.sign(spec, days=LIFE.days)
        data = {"tls.crt": pair.certificate, "tls.key": pair.key, "ca.crt": signer.certificate}
        await self._apply(
            f"{place}/{spec['secretName']}",
            {
                "apiVersion": "v1",
                "kind": "Secret",
                "type": "kubernetes.io/tls",
                "metadata": {
                    "name": spec["secretName"],
                    "annotations": {"cert-manager.io/certificate-name": meta["name"]},
                    **({"labels": labels} if (labels := spec.get("secretTemplate", {}).get("labels")) else {}),
                },
                "data": {name: base64.b64encode(content).decode() for name, content in data.items()},
            },
        )
        now = datetime.datetime.now(datetime.UTC)
        status = {
            "conditions": [_condition("Ready", True, "Ready", "Certificate is up to date and has not expired", meta)],
            "notBefore": _time(now),
            "notAfter": _time(now + LIFE),
            "renewalTime": _time(now + LIFE * 2 / 3),
            "revision": each.get("status", {}).get("revision", 0) + 1,
        }
        await self._say(each, CERTIFICATES, status)

    async def _signer(self, each: Object) -> Authority:
        """Return who signs: for an issuer `ca` the authority of its Secret, for `selfSigned` a new one or ours."""
        issuer, home = each["spec"]["issuerRef"], each["metadata"]["namespace"]
        if issuer.get("kind", "Issuer") == "Issuer":
            found = await self._json("GET", f"{ISSUERS.format(home)}/{issuer['name']}")
            if "selfSigned" in found["spec"]:
                return Authority(each["spec"]["commonName"], days=2 * LIFE.days)
        else:
            answer = await self.http.get(f"{CLUSTER_ISSUERS}/{issuer['name']}")
            found, home = answer.json() if answer.status_code == 200 else {}, CERT_MANAGER
            if "ca" not in (found.get("spec") or {}):
                return self.authority
        name = found["spec"]["ca"]["secretName"]
        secret = await self._json("GET", f"/api/v1/namespaces/{home}/secrets/{name}")
        certificate, key = (base64.b64decode(secret["data"][part]) for part in ("tls.crt", "tls.key"))
        return Authority.read(Pair(certificate, key))

    async def claim(self, each: Object) -> None:
        """Give a claim of our storage class a volume; let a bound one grow."""
        meta, spec, status = each["metadata"], each["spec"], each.get("status", {})
        size = spec["resources"]["requests"]["storage"]
        name = f"pvc-{meta['uid']}"
        if status.get("phase") == "Bound":
            grown = status.get("capacity", {}).get("storage") not in {None, size}
            if grown and await self._ours(spec.get("storageClassName")):
                await self._patch(f"{VOLUMES}/{name}", {"spec": {"capacity": {"storage": size}}})
                await self._say(each, CLAIMS, {"capacity": {"storage": size}})
            return
        if meta.get("deletionTimestamp") or not await self._ours(spec.get("storageClassName")):
            return
        await self._apply(
            f"{VOLUMES}/{name}",
            {
                "apiVersion": "v1",
                "kind": "PersistentVolume",
                "metadata": {"name": name, "annotations": {"pv.kubernetes.io/provisioned-by": PROVISIONER}},
                "spec": {
                    "capacity": {"storage": size},
                    "accessModes": spec["accessModes"],
                    "storageClassName": spec["storageClassName"],
                    # Delete would ask for a driver that deletes; `volume` below does it.
                    "persistentVolumeReclaimPolicy": "Retain",
                    "claimRef": {
                        "apiVersion": "v1",
                        "kind": "PersistentVolumeClaim",
                        "namespace": meta["namespace"],
                        "name": meta["name"],
                        "uid": meta["uid"],
                    },
                    "csi": {"driver": PROVISIONER, "volumeHandle": name},
                },
            },
        )

    async def volume(self, each: Object) -> None:
        """Remove a volume of ours whose claim is gone."""
        ours = each["metadata"].get("annotations", {}).get("pv.kubernetes.io/provisioned-by") == PROVISIONER
        if ours and each.get("status", {}).get("phase") == "Released":
            await self.http.delete(f"{VOLUMES}/{each['metadata']['name']}")

    async def cluster(self, each: Object) -> None:
        """Say that a CloudNativePG Cluster is healthy, or hibernated if its annotation asks for that."""
        meta, instances = each["metadata"], each["spec"].get("instances", 1)
        asleep = meta.get("annotations", {}).get("cnpg.io/hibernation") == "on"
        names = [f"{meta['name']}-{number}" for number in range(1, instances + 1)]
        conditions = [
            _condition("Ready", not asleep, "ClusterIsReady" if not asleep else "ClusterIsNotReady", "", meta),
            _condition("ContinuousArchiving", True, "ContinuousArchivingSuccess", "", meta),
        ]
        if asleep:
            conditions.append(
                _condition("cnpg.io/hibernation", True, "Hibernated", "Cluster has been hibernated", meta)
            )
        status = {
            "phase": "Cluster in healthy state",
            "instances": instances,
            "readyInstances": 0 if asleep else instances,
            "instanceNames": names,
            "currentPrimary": names[0],
            "targetPrimary": names[0],
            "image": each["spec"].get("imageName", ""),
            "writeService": f"{meta['name']}-rw",
            "readService": f"{meta['name']}-r",
            "conditions": conditions,
        }
        await self._say(each, CLUSTERS, status)

    async def service(self, each: Object) -> None:
        """Give a load balancer its address."""
        if each["spec"].get("type") == "LoadBalancer":
            await self._say(each, SERVICES, {"loadBalancer": {"ingress": [{"ip": ADDRESS, "ipMode": "VIP"}]}})

    async def ingress(self, each: Object) -> None:
        """Give an Ingress its address."""
        await self._say(each, INGRESSES, {"loadBalancer": {"ingress": [{"ip": ADDRESS}]}})

    async def _ours(self, storage_class: str | None) -> bool:
        answer = (
            await self.http.get(f"/apis/storage.k8s.io/v1/storageclasses/{storage_class}") if storage_class else None
        )
        return answer is not None and answer.status_code == 200 and answer.json()["provisioner"] == PROVISIONER

    async def _follow(self, path: str, act: Act) -> None:
        """List, then watch; begin again whenever anything ends it. An error in one object does not stop the rest."""
        while True:
            with contextlib.suppress(httpx.HTTPError, json.JSONDecodeError, _Again):
                listed = await self._json("GET", path)
                done = [await self._act(act, each) for each in listed["items"] or []]
                if all(done):
                    await self._watch(path, listed["metadata"]["resourceVersion"], act)
            await asyncio.sleep(0.3)

    async def _watch(self, path: str, version: str, act: Act) -> None:
        parameters = {"watch": "true", "resourceVersion": version}
        async with self.http.stream("GET", path, params=parameters, timeout=httpx.Timeout(30, read=None)) as answer:
            async for line in answer.aiter_lines():
                event = json.loads(line)
                if event["type"] == "ERROR":
                    return
                if event["type"] in {"ADDED", "MODIFIED"} and not await self._act(act, event["object"]):
                    return

    async def _act(self, act: Act, each: Object) -> bool:
        """Return False where it has to be tried again."""
        if HANDS_OFF in each["metadata"].get("annotations", {}):
            return True
        try:
            await act(each)
        except (httpx.HTTPError, _Again) as error:
            print(f"{act.__name__} {each['metadata']['name']}: {error!r}", file=sys.stderr, flush=True)  # noqa: T201
            return False
        return True

    async def _say(self, each: Object, path: str, status: Object) -> None:
        """Write a status, unless it says all that already."""
        said = each.get("status") or {}
        if all(_same(said.get(key), value) for key, value in status.items()):
            return
        await self._patch(_one(each, path) + "/status", {"status": status})

    async def _patch(self, path: str, change: Object) -> None:
        await self._json("PATCH", path, json=change, headers={"Content-Type": MERGE})

    async def _apply(self, path: str, content: Object) -> None:
        parameters = {"fieldManager": MANAGER, "force": "true"}
        headers = {"Content-Type": "application/apply-patch+yaml"}
        await self._json("PATCH", path, json=content, params=parameters, headers=headers)

    async def _json(self, method: str, path: str, **options: Any) -> Object:
        answer = await self.http.request(method, path, **options)
        if answer.status_code == 404 and method != "GET":
            return {}  # it was deleted in the meantime
        if answer.is_error:
            raise _Again(f"{method} {path}: {answer.status_code} {answer.text[:300]}")
        return dict(answer.json())


class _Again(Exception):
    """The API server refused; list again."""


def _one(each: Object, path: str) -> str:
    """Return the path of one object of the kind whose cluster-wide list is `path`."""
    head, _, plural = path.rpartition("/")
    return f"{head}/namespaces/{each['metadata']['namespace']}/{plural}/{each['metadata']['name']}"


def _conditions(each: Object) -> list[Object]:
    return (each.get("status") or {}).get("conditions") or []


def _condition(kind: str, holds: bool, reason: str, message: str, meta: Object) -> Object:
    return {
        "type": kind,
        "status": "True" if holds else "False",
        "reason": reason,
        "message": message,
        "observedGeneration": meta.get("generation", 0),
        "lastTransitionTime": _time(datetime.datetime.now(datetime.UTC)),
    }


def _same(said: Any, wanted: Any) -> bool:
    """Compare, with the times of conditions left out."""
    if isinstance(wanted, dict):
        return isinstance(said, dict) and all(
            _same(said.get(key), value) for key, value in wanted.items() if key != "lastTransitionTime"
        )
    if isinstance(wanted, list):
        return isinstance(said, list) and len(said) == len(wanted) and all(map(_same, said, wanted))
    return bool(said == wanted)


def _time(moment: datetime.datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


async def main(kubeconfig: Path, *, databases: bool) -> None:
    """Run until killed. Without `databases` CloudNativePG's Clusters are left to its own operator."""
    url, verify, headers = connection(kubeconfig)
    async with httpx.AsyncClient(base_url=url, verify=verify, headers=headers, timeout=30, trust_env=False) as http:
        await StandIns(http, Authority("test issuer", days=2 * LIFE.days), databases).run()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kubeconfig", type=Path)
    parser.add_argument("--no-databases", dest="databases", action="store_false")
    arguments = parser.parse_args()
    asyncio.run(main(arguments.kubeconfig, databases=arguments.databases))
