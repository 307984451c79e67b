"""The kinds of which a server consists, and what is looked at in those whose status matters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from provisioning.operator.kube.kinds import Kind

SERVERS = Kind("hearth.host", "v1", "MatrixServer", "matrixservers", whole=True)


class Place(NamedTuple):
    """Which child of a server: its kind and its name."""

    kind: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"


@dataclass(frozen=True, slots=True)
class Workload:
    """What a Deployment or a StatefulSet says of itself. `current`: its controller has seen its newest spec."""

    desired: int
    replicas: int
    updated: int
    ready: int
    current: bool
    image: str
    selector: str
    reason: str = ""
    message: str = ""
    changed: str = ""
    """When somebody last changed what is asked for, in RFC 3339."""

    @property
    def settled(self) -> bool:
        """Whether it is as its spec says: everything runs, is new and ready, and nothing else is left."""
        return self.current and self.desired == self.replicas == self.updated == self.ready


@dataclass(frozen=True, slots=True)
class Database:
    """What a CloudNativePG Cluster says of itself."""

    instances: int
    ready: int
    phase: str
    healthy: bool
    hibernated: bool
    message: str = ""
    copied: bool = False
    """Whether it was made as a copy of another database."""
    archiving: bool | None = None
    backed_up: bool | None = None


@dataclass(frozen=True, slots=True)
class Certified:
    """What a cert-manager Certificate says of itself."""

    ready: bool
    reason: str = ""
    message: str = ""


@dataclass(frozen=True, slots=True)
class Volume:
    """What a PersistentVolumeClaim says of itself. `growing`: it has asked for more than it has yet."""

    phase: str
    storage_class: str
    growing: bool
    reason: str = ""
    message: str = ""


def outdated(seen: Any) -> Any:
    """Return what was seen of a child, for the time until its controller has taken what we have just written."""
    if isinstance(seen, Workload):
        return replace(seen, current=False)
    return replace(seen, healthy=False, hibernated=False) if isinstance(seen, Database) else seen


def _conditions(found: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    return {each["type"]: each for each in (found.get("status") or {}).get("conditions") or ()}


def _selector(found: Mapping[str, Any]) -> str:
    labels = ((found["spec"].get("selector") or {}).get("matchLabels")) or {}
    return ",".join(f"{key}={value}" for key, value in sorted(labels.items()))


def _said(conditions: Iterable[tuple[Mapping[str, Any] | None, str]]) -> tuple[str, str]:
    """Return reason and message of the first condition that has the status that means trouble."""
    for condition, trouble in conditions:
        if condition is not None and condition.get("status") == trouble:
            return str(condition.get("reason") or ""), str(condition.get("message") or "")
    return "", ""


def _workload(found: Mapping[str, Any]) -> Workload:
    spec, status, conditions = found["spec"], found.get("status") or {}, _conditions(found)
    reason, message = _said([(conditions.get("ReplicaFailure"), "True"), (conditions.get("Progressing"), "False")])
    containers = spec["template"]["spec"].get("containers") or [{}]
    desired = spec.get("replicas")
    return Workload(
        desired=1 if desired is None else int(desired),
        replicas=int(status.get("replicas") or 0),
        updated=int(status.get("updatedReplicas") or 0),
        ready=int(status.get("readyReplicas") or 0),
        current=int(status.get("observedGeneration") or 0) >= int(found["metadata"].get("generation") or 0),
        image=str(containers[0].get("image") or ""),
        selector=_selector(found),
        reason=reason,
        message=message,
        changed=max((str(each.get("time") or "") for each in _wishes(found)), default=""),
    )


def _wishes(found: Mapping[str, Any]) -> Iterable[Mapping[str, Any]]:
    entries: Iterable[Mapping[str, Any]] = found["metadata"].get("managedFields") or ()
    return (each for each in entries if each.get("subresource") != "status")


def _truth(condition: Mapping[str, Any] | None) -> bool | None:
    return None if condition is None else condition.get("status") == "True"


def _database(found: Mapping[str, Any]) -> Database:
    status, conditions = found.get("status") or {}, _conditions(found)
    instances, ready = int(found["spec"].get("instances") or 1), int(status.get("readyInstances") or 0)
    annotated = (found["metadata"].get("annotations") or {}).get("cnpg.io/hibernation") == "on"
    return Database(
        instances=instances,
        ready=ready,
        phase=str(status.get("phase") or ""),
        healthy=bool(_truth(conditions.get("Ready"))) and not annotated,
        hibernated=annotated and bool(_truth(conditions.get("cnpg.io/hibernation"))),
        message=str(status.get("phaseReason") or ""),
        copied="pg_basebackup" in (found["spec"].get("bootstrap") or {}),
        archiving=_truth(conditions.get("ContinuousArchiving")),
        backed_up=_truth(conditions.get("LastBackupSucceeded")),
    )


def _certificate(found: Mapping[str, Any]) -> Certified:
    condition = _conditions(found).get("Ready") or {}
    return Certified(
        condition.get("status") == "True", str(condition.get("reason") or ""), str(condition.get("message") or "")
    )


def _volume(found: Mapping[str, Any]) -> Volume:
    spec, status, conditions = found["spec"], found.get("status") or {}, _conditions(found)
    asked = (spec.get("resources") or {}).get("requests", {}).get("storage")
    has = (status.get("capacity") or {}).get("storage")
    failed = [(conditions.get(name), "True") for name in ("ControllerResizeError", "NodeResizeError")]
    reason, message = _said(failed)
    return Volume(
        phase=str(status.get("phase") or "Pending"),
        storage_class=str(spec.get("storageClassName") or ""),
        growing=bool(has) and has != asked,
        reason=reason,
        message=message,
    )


KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind("", "v1", "ServiceAccount", "serviceaccounts", shared=True),
        Kind("", "v1", "ConfigMap", "configmaps"),
        Kind("", "v1", "Service", "services"),
        Kind("", "v1", "ResourceQuota", "resourcequotas"),
        Kind("", "v1", "LimitRange", "limitranges"),
        Kind("", "v1", "PersistentVolumeClaim", "persistentvolumeclaims", shared=True, look=_volume),
        Kind("apps", "v1", "Deployment", "deployments", look=_workload),
        Kind("apps", "v1", "StatefulSet", "statefulsets", look=_workload),
        Kind("networking.k8s.io", "v1", "NetworkPolicy", "networkpolicies"),
        Kind("networking.k8s.io", "v1", "Ingress", "ingresses"),
        Kind("policy", "v1", "PodDisruptionBudget", "poddisruptionbudgets"),
        Kind("autoscaling", "v2", "HorizontalPodAutoscaler", "horizontalpodautoscalers"),
        Kind("gateway.networking.k8s.io", "v1", "HTTPRoute", "httproutes"),
        Kind("gateway.networking.k8s.io", "v1beta1", "ReferenceGrant", "referencegrants"),
        Kind("cert-manager.io", "v1", "Certificate", "certificates", look=_certificate),
        Kind("postgresql.cnpg.io", "v1", "Cluster", "clusters", shared=True, look=_database),
        Kind("postgresql.cnpg.io", "v1", "Pooler", "poolers", shared=True),
        Kind("postgresql.cnpg.io", "v1", "ScheduledBackup", "scheduledbackups", shared=True),
        Kind("monitoring.coreos.com", "v1", "ServiceMonitor", "servicemonitors"),
        Kind("monitoring.coreos.com", "v1", "PodMonitor", "podmonitors"),
        Kind("monitoring.coreos.com", "v1", "PrometheusRule", "prometheusrules"),
        Kind("kubeovn.io", "v1", "Vpc", "vpcs", shared=True, namespaced=False),
        Kind("kubeovn.io", "v1", "Subnet", "subnets", shared=True, namespaced=False),
    )
}
"""Every kind the chart may render. RBAC and the watches are made from this list; another kind is refused."""

BUILT_IN = {"", "apps", "networking.k8s.io", "policy", "autoscaling"}
"""Groups that every API server has; the kinds of others are watched once their definition is there."""

KEEPS = {"PersistentVolumeClaim", "Cluster"}
"""Hold data. They are never pruned: only when the MatrixServer itself is deleted do they go with it."""

ALWAYS = {Place("StatefulSet", "synapse-main"), Place("NetworkPolicy", "default-deny")}
"""What every server has. Documents without them are no server's: to carry them out would take down what runs."""

ORDER = {name: place for place, name in enumerate(KINDS)}
"""What others need comes first: accounts, configuration and volumes before the processes that mount them."""
