"""Why processes do not run, as their pods and volumes tell. Read only for a server that has not come up for a while."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from provisioning.operator.children import KINDS, Workload
from provisioning.operator.kube.client import METADATA, Client
from provisioning.operator.kube.errors import ApiError
from provisioning.operator.kube.kinds import PODS, Kind
from provisioning.operator.observed import AGENT, MAIN, VOLUME_ELSEWHERE, Fault

CLASSES = Kind("storage.k8s.io", "v1", "StorageClass", "storageclasses", namespaced=False)
CORE_EVENTS = Kind("", "v1", "Event", "events")
DEFAULT_CLASS = "storageclass.kubernetes.io/is-default-class"
RECOVERY_PODS = "recovery"
APART = (f"{AGENT.name}-", f"{RECOVERY_PODS}-")
"""Beginnings of names of pods that serve nobody."""
TAIL = 300  # characters of what a process said last

# What Synapse and libpq say when the database does not let them in; parts of a line, in lower case.
DATABASE = (
    ("password authentication failed", "DatabaseRefused", "The database refuses the password of this server's Secret."),
    ("no password supplied", "DatabaseRefused", "The database wants a password and this server's Secret has none."),
    ("does not exist", "DatabaseMissing", "The database server has no such database or user."),
    ("could not translate host name", "DatabaseUnreachable", "The database's host name can't be found."),
    ("connection refused", "DatabaseUnreachable", "Nothing answers at the database's address."),
    ("incorrect collation", "DatabaseCollation", "The database was not made with locale C, which Synapse needs."),
    ("cannot use this database as it is too new", "DatabaseTooNew", "The database belongs to a later Synapse."),
)
PASSING = ("status unknown for quota", "already exists", "being deleted")
"""Parts of refusals that end by themselves."""
WAITING = {
    "CreateContainerConfigError": ("SecretIncomplete", "The server's Secret is missing or lacks a key"),
    "ErrImagePull": ("ImageMissing", "The image can't be fetched"),
    "ImagePullBackOff": ("ImageMissing", "The image can't be fetched"),
    "InvalidImageName": ("ImageMissing", "The image's name is not valid"),
    "CreateContainerError": ("ContainerFailed", "A container can't be made"),
}


@dataclass(frozen=True)
class Diagnosis:
    """The first cause found, and how often the main process has ended."""

    fault: Fault | None
    crashes: int = 0
    starting: bool = False
    """Whether the main process runs and has not answered since its start: it may be changing its database."""


async def diagnose(client: Client, namespace: str, workloads: Mapping[str, Workload]) -> Diagnosis:
    """Look at a namespace's pods, volumes and refusals. `workloads`: its groups of processes by name."""
    all_pods = (await client.list(PODS, namespace)).get("items") or []
    pods = [each for each in all_pods if not str(each["metadata"]["name"]).startswith(APART)]
    found = of_pods(pods)
    if found.fault and found.fault.reason != "Unschedulable":
        return found
    claims = (await client.list(KINDS["PersistentVolumeClaim"], namespace)).get("items") or []
    pending = [claim for claim in claims if (claim.get("status") or {}).get("phase") == "Pending"]
    if fault := await _volumes(client, pending):
        return replace(found, fault=fault)
    if found.fault:
        return found
    events = (await client.list(CORE_EVENTS, namespace)).get("items") or []
    if fault := of_attachments(events, pods):
        return replace(found, fault=fault)
    return replace(found, fault=of_events(events, workloads))


async def diagnose_pods(client: Client, namespace: str, name: str) -> Fault | None:
    """Say why the pods of a component do not run, as they tell."""
    pods = await client.list(PODS, namespace, selector=f"app.kubernetes.io/name={name}")
    return of_pods(pods.get("items") or []).fault


async def diagnose_agent(client: Client, namespace: str) -> Fault | None:
    """Say why a server's backup agent does not run, as its pod tells."""
    return await diagnose_pods(client, namespace, AGENT.name)


def of_pods(pods: Iterable[Mapping[str, Any]]) -> Diagnosis:
    """Return the cause that pods tell: the gravest of the first pod that tells one."""
    fault, crashes, starting = None, 0, False
    for pod in sorted(pods, key=lambda each: str(each["metadata"]["name"])):
        status, name = pod.get("status") or {}, pod["metadata"]["name"]
        containers = [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]
        if str(name).startswith(MAIN):
            crashes = max([crashes, *(int(each.get("restartCount") or 0) for each in containers)])
            starting = starting or any(_starts(each) for each in status.get("containerStatuses") or ())
        fault = fault or next(filter(None, (_container(name, each) for each in containers)), None)
        fault = fault or _unscheduled(name, status)
    return Diagnosis(fault, crashes, starting)


def _starts(container: Mapping[str, Any]) -> bool:
    """Say whether a container runs, has passed no startup probe yet, and has never ended."""
    runs = "running" in (container.get("state") or {})
    return runs and container.get("started") is False and not container.get("restartCount")


def _unscheduled(name: str, status: Mapping[str, Any]) -> Fault | None:
    for each in status.get("conditions") or ():
        if each["type"] == "PodScheduled" and each["status"] == "False" and each.get("reason") == "Unschedulable":
            text = f"No node of the region has room for {name}: {each.get('message') or ''}"
            return Fault("Unschedulable", f"{text} No data is lost; it starts once there is room.")
    return None


def _container(name: str, found: Mapping[str, Any]) -> Fault | None:
    waiting = (found.get("state") or {}).get("waiting") or {}
    reason = str(waiting.get("reason") or "")
    if known := WAITING.get(reason):
        return Fault(known[0], f"{known[1]} ({name}): {waiting.get('message') or reason}")
    ended = [(found.get(key) or {}).get("terminated") or {} for key in ("state", "lastState")]
    last = next((each for each in ended if each.get("exitCode") or each.get("reason") == "OOMKilled"), None)
    if last is None or (reason != "CrashLoopBackOff" and found.get("ready")):
        return None
    if last.get("reason") == "OOMKilled":
        return Fault("OutOfMemory", f"{name} used more memory than its share and was ended. No data is lost.")
    said = str(last.get("message") or "").strip()
    for part, named, sentence in DATABASE:
        if part in said.lower():
            return Fault(named, f"{sentence} No data is lost. {name} said: {_last_line(said)}")
    return Fault("Crashing", f"{name} ends soon after its start. It said last: {_last_line(said) or 'nothing'}")


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].strip()[-TAIL:] if lines else ""


async def _volumes(client: Client, pending: Iterable[Mapping[str, Any]]) -> Fault | None:
    for claim in pending:
        name, wanted = claim["metadata"]["name"], claim["spec"].get("storageClassName")
        if wanted:
            try:
                await client.get(CLASSES, "", wanted, accept=METADATA)
            except ApiError as error:
                if error.status != 404:
                    raise
                text = f"The volume {name} waits for the storage class {wanted}, which the region does not have."
                return Fault("StorageClassMissing", f"{text} Add it to the cluster, or choose another for the region.")
        elif wanted is None:
            classes = (await client.list(CLASSES)).get("items") or []
            if not any((each["metadata"].get("annotations") or {}).get(DEFAULT_CLASS) == "true" for each in classes):
                text = f"The volume {name} names no storage class and the region has no default one."
                return Fault("StorageClassMissing", text)
    return None


def of_attachments(events: Iterable[Mapping[str, Any]], pods: Iterable[Mapping[str, Any]]) -> Fault | None:
    """Return that a volume is still mounted on another node than that on which a pod is to start."""
    waiting = {
        str(each["metadata"].get("uid")) for each in pods if (each.get("status") or {}).get("phase") == "Pending"
    }
    for each in events:
        of, text = str((each.get("involvedObject") or {}).get("uid")), str(each.get("message") or "")
        if each.get("reason") == "FailedAttachVolume" and "Multi-Attach" in text and of in waiting:
            return Fault(VOLUME_ELSEWHERE, f"A volume is still in use on another node. No data is lost. {text}")
    return None


def of_events(events: Iterable[Mapping[str, Any]], workloads: Mapping[str, Workload]) -> Fault | None:
    """Return the refusal to make pods that a StatefulSet has no condition for.

    An Event outlives its cause by an hour: it counts only for a group that lacks pods now, and only when it was told
    after somebody last changed what is asked of the group.
    """
    lacking = {name: each.changed for name, each in workloads.items() if each.replicas < each.desired}
    refused = [each for each in events if each.get("reason") == "FailedCreate"]
    for each in sorted(refused, key=_told, reverse=True):
        name, text = str((each.get("involvedObject") or {}).get("name")), str(each.get("message") or "")
        if name not in lacking or _told(each) < lacking[name] or any(part in text for part in PASSING):
            continue
        if "exceeded quota" in text:
            return Fault("QuotaExceeded", f"{name} needs more than this server's quota allows: {text}")
        return Fault("PodsRefused", f"The cluster refuses to start {name}: {text}")
    return None


def _told(event: Mapping[str, Any]) -> str:
    return str(event.get("lastTimestamp") or event.get("eventTime") or "")
