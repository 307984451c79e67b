"""What a test cluster holds from its start: custom resources, nodes, a storage class, an issuer, an ingress class."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.cluster import definitions
from tests.cluster.api import Api, Object
from tests.cluster.stand_ins import PROVISIONER

ROOT = Path(__file__).resolve().parents[2]
OWN = ROOT / "provisioning" / "chart" / "crds"
DEFINITION = ("apiextensions.k8s.io/v1", "CustomResourceDefinition")
NAME = "test"
"""The name of the storage class, the ClusterIssuer, the IngressClass and the GatewayClass."""
MARK = {"hearth.host/test-cluster": "true"}
"""The label on `kube-system` by which a cluster says that tests may use it."""


def furnish(api: Api, *, nodes: int, keep: bool = False) -> None:
    """Apply all of it; return when the custom resources can be used. With `keep` what others defined stays as it is."""
    api.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "kube-system", "labels": MARK}})
    there = {each["metadata"]["name"] for each in api.list(*DEFINITION)} if keep else set()
    foreign = [each for each in (*definitions.find(), *_kube_ovn()) if each["metadata"]["name"] not in there]
    resources = [*foreign, *definitions.load(sorted(OWN.glob("*.yaml")))]
    api.apply(*resources)
    api.apply(*_classes(), *[node(f"node-{number}") for number in range(nodes)])
    names = {each["metadata"]["name"] for each in resources}
    api.wait("usable custom resource definitions", lambda: names <= _established(api))
    api.apply(_issuer())


def node(name: str, *, cpu: str = "64", memory: str = "256Gi", pods: int = 1000) -> Object:
    """Return a node that kwok plays, in the zone of its last letter."""
    room = {"cpu": cpu, "memory": memory, "pods": str(pods), "ephemeral-storage": "1Ti"}
    labels = {"type": "kwok", "kubernetes.io/hostname": name, "kubernetes.io/os": "linux"}
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": name,
            "labels": labels | {"topology.kubernetes.io/zone": f"zone-{name[-1]}"},
            "annotations": {"kwok.x-k8s.io/node": "fake"},
        },
        "status": {"allocatable": room, "capacity": room},
    }


def _classes() -> list[Object]:
    default = {"storageclass.kubernetes.io/is-default-class": "true"}
    return [
        {
            "apiVersion": "storage.k8s.io/v1",
            "kind": "StorageClass",
            "metadata": {"name": NAME, "annotations": default},
            "provisioner": PROVISIONER,
            "allowVolumeExpansion": True,
        },
        {
            "apiVersion": "networking.k8s.io/v1",
            "kind": "IngressClass",
            "metadata": {"name": NAME},
            "spec": {"controller": "tests.hearth.host/ingress"},
        },
    ]


def _issuer() -> Object:
    return {
        "apiVersion": "cert-manager.io/v1",
        "kind": "ClusterIssuer",
        "metadata": {"name": NAME},
        "spec": {"selfSigned": {}},
    }


def _kube_ovn() -> list[Object]:
    """Return stand-ins for Kube-OVN's Vpc and Subnet, whose source can't be had as a Go module.

    The fields are those of its documentation that Hearth writes; any other is refused, so a typing error is seen.
    """
    text, flag, texts = {"type": "string"}, {"type": "boolean"}, {"type": "array", "items": {"type": "string"}}
    route = {"cidr": text, "nextHopIP": text, "policy": text, "routeTable": text}
    routes = {"type": "array", "items": {"type": "object", "properties": route}}
    vpc = {"namespaces": texts, "defaultSubnet": text, "enableExternal": flag, "staticRoutes": routes}
    subnet: Object = {
        "vpc": text,
        "protocol": {"type": "string", "enum": ["IPv4", "IPv6", "Dual"]},
        "cidrBlock": text,
        "gateway": text,
        "gatewayType": {"type": "string", "enum": ["centralized", "distributed"]},
        "gatewayNode": text,
        "excludeIps": texts,
        "namespaces": texts,
        "allowSubnets": texts,
        "private": flag,
        "natOutgoing": flag,
        "enableDHCP": flag,
        "default": flag,
        "provider": text,
        "vlan": text,
    }
    return [_kube_ovn_definition("vpcs", "Vpc", vpc), _kube_ovn_definition("subnets", "Subnet", subnet)]


def _kube_ovn_definition(plural: str, kind: str, fields: Object) -> Object:
    status: dict[str, Any] = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    schema = {"type": "object", "properties": {"spec": {"type": "object", "properties": fields}, "status": status}}
    version = {"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}}
    return {
        "apiVersion": DEFINITION[0],
        "kind": DEFINITION[1],
        "metadata": {"name": f"{plural}.kubeovn.io"},
        "spec": {
            "group": "kubeovn.io",
            "names": {"plural": plural, "singular": kind.lower(), "kind": kind, "listKind": f"{kind}List"},
            "scope": "Cluster",
            "versions": [version | {"subresources": {"status": {}}}],
        },
    }


def _established(api: Api) -> set[str]:
    return {
        each["metadata"]["name"]
        for each in api.list(*DEFINITION)
        for one in (each.get("status") or {}).get("conditions") or []
        if one["type"] == "Established" and one["status"] == "True"
    }
