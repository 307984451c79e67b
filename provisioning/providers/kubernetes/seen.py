"""What a MatrixServer says of itself, as Hearth's observation. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

from provisioning.providers.base import Observation
from provisioning.providers.kubernetes.objects import INSTANCE_OF, SERVER
from provisioning.providers.kubernetes.usage import Use

UNKNOWN = ("OperatorSilent", "The cluster has taken this server's change, but its operator has not looked at it yet.")


def condition(server: Mapping[str, Any], kind: str) -> Mapping[str, Any]:
    """Return one condition of the status, or an empty one."""
    found = (server.get("status") or {}).get("conditions") or ()
    return next((each for each in found if each["type"] == kind), {})


def current(server: Mapping[str, Any]) -> bool:
    """Tell whether the status speaks of the spec as it is now."""
    observed = (server.get("status") or {}).get("observedGeneration") or 0
    return bool(observed >= server["metadata"].get("generation", 0))


def observation(server: Mapping[str, Any], use: Use, *, other: str = "") -> Observation:
    """Return one server as the operator sees it, and what it uses. A named reason is the operator's own.

    `other`: the Hearth to which it belongs, where that is another one.
    """
    metadata, status = server["metadata"], server.get("status") or {}
    ready = condition(server, "Ready")
    running = ready.get("status") == "True" and not metadata.get("deletionTimestamp")
    reason, message = _trouble(server, running=running)
    instance_of = str((metadata.get("annotations") or {}).get(INSTANCE_OF) or "")
    if other:
        reason, message = "AnotherHearth", f"This server belongs to another Hearth, “{other}”. Nothing is done to it."
    return Observation(
        # A policy holds this label to that of the namespace, which Hearth alone may change.
        server_id=str((metadata.get("labels") or {}).get(SERVER) or str(metadata["namespace"]).removeprefix("hearth-")),
        exists=True,
        running=running,
        reason=reason,
        message=message,
        homeserver_url=str(status.get("address") or ""),
        version=str(status.get("version") or ""),
        signing_key_id=str(status.get("signingKeyId") or ""),
        # What ran before it was last not ready must pass the checks again.
        started_at=_moment(ready) if running else None,
        suspended="suspended" in server["spec"],
        memory_bytes=use.memory_bytes,
        cpu_cores=use.cpu_cores,
        disk_bytes=use.disk_bytes,
        details={
            "components": status.get("components") or [],
            "generation": metadata.get("generation"),
            **({"instance_of": instance_of} if instance_of else {}),
        },
    )


def used_by(seen: Observation, use: Use) -> Observation:
    """Return an observation with what the server uses now."""
    return replace(seen, memory_bytes=use.memory_bytes, cpu_cores=use.cpu_cores, disk_bytes=use.disk_bytes)


def _trouble(server: Mapping[str, Any], *, running: bool) -> tuple[str, str]:
    if server["metadata"].get("deletionTimestamp"):
        return "Deleting", "The server is being removed from its cluster."
    if "suspended" in server["spec"]:
        return "", ""
    degraded = condition(server, "Degraded")
    if degraded.get("status") == "True":
        return str(degraded["reason"]), str(degraded["message"])
    if running:
        return "", ""
    ready = condition(server, "Ready")
    return (str(ready["reason"]), str(ready["message"])) if ready else UNKNOWN


def _moment(found: Mapping[str, Any]) -> float:
    return datetime.fromisoformat(str(found["lastTransitionTime"])).timestamp()
