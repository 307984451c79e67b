"""What is wanted, as plain data, and which operation closes the distance to what was carried out. No I/O."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from provisioning.models import Operation
from provisioning.providers.base import ServerSpec
from tenants.models import WITH_PLAN, Server

Kind = Operation.Kind
RUNNING, SUSPENDED, CLOSED, REMOVED = "running", "suspended", "closed", "removed"
CONFIGURED = ("vcpu", "memory_mb", "disk_gb", "object_gb", "users", "federation")
KEPT: dict[str, Any] = dict.fromkeys(WITH_PLAN) | {
    "database_instances": 1, "database_synchronous": False, "database_replicas": False
}  # fmt: skip
"""What a server has from its plan, as it was before plans said anything: operations and states of then lack it."""
BROUGHT_BACK = (Kind.RESTORE, Kind.SWITCH, Kind.GO_BACK)
"""What gives a server another state of its data, and the version that goes with it."""
ABOUT_BACKUPS = (*BROUGHT_BACK, Kind.COPY, Kind.DROP, Kind.EXPORT)
ALONE: dict[str, tuple[str, ...]] = {
    Kind.RESTART: ("restarts",), Kind.PASSWORD: ("password_resets",), Kind.COPY: (), Kind.DROP: (),
    Kind.EXPORT: (),
    **dict.fromkeys(BROUGHT_BACK, ("version",)),
}  # fmt: skip
"""Operations that carry out these parts of what is wanted, and nothing else that may be wanted by then."""
CLOSED_MESSAGE = "This server was deleted by its owner. Only its owner can bring it back, and only for a while."


def wanted(server: Server, *, federation: bool, now: datetime) -> dict[str, Any]:
    """Return the desired state of `server` as JSON. `mode` is `closed` while a deletion can still be taken back."""
    mode, message = RUNNING, ""
    if server.desired == Server.Desired.SUSPENDED:
        mode, message = SUSPENDED, server.suspend_message
    elif server.desired == Server.Desired.DELETED:
        due = server.delete_after is None or server.delete_after <= now
        mode, message = (REMOVED if due else CLOSED), CLOSED_MESSAGE
    return {
        "mode": mode,
        "message": message,
        "version": server.version,
        "vcpu": server.vcpu,
        "memory_mb": server.memory_mb,
        "disk_gb": server.disk_gb,
        "object_gb": server.object_gb,
        "users": server.users,
        "federation": federation,
        **{key: getattr(server, key) for key in KEPT},
        "restarts": server.restarts,
        "password_resets": server.password_resets,
    }


def decide(want: Mapping[str, Any], applied: Mapping[str, Any]) -> Operation.Kind | None:
    """Return the next kind of operation, or None when `applied` (empty before creation) is what is wanted."""
    mode = want["mode"]
    if not applied:
        # A server that was never finished has nothing worth a grace period, yet may have left something behind.
        return Kind.DELETE if mode in (CLOSED, REMOVED) else Kind.CREATE
    if mode == REMOVED:
        return Kind.DELETE
    shut = (applied["mode"], applied["message"]) == (mode, want["message"])
    if mode in (CLOSED, SUSPENDED):
        return None if shut else Kind.SUSPEND  # everything else waits until it is resumed
    return Kind.RESUME if applied["mode"] != RUNNING else _for_running(want, applied)


def _for_running(want: Mapping[str, Any], applied: Mapping[str, Any]) -> Operation.Kind | None:
    if want["version"] != applied["version"]:
        return Kind.UPGRADE
    if any(want[key] != applied[key] for key in CONFIGURED) or _kept(want) != _kept(applied):
        return Kind.CONFIGURE
    if want["restarts"] != applied["restarts"]:
        return Kind.RESTART
    if want["password_resets"] != applied["password_resets"]:
        return Kind.PASSWORD
    return None


def carried_out(kind: str, want: Mapping[str, Any], applied: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is applied after an operation of `kind` succeeded."""
    if kind == Kind.DELETE:
        return {}
    if kind == Kind.CREATE:
        # A server is always made running and then suspended, so that its accounts exist.
        return {**want, "mode": RUNNING, "message": ""}
    if kind in ALONE:
        return {**applied, **{key: want[key] for key in ALONE[kind]}}
    after = {**applied, **{key: want[key] for key in CONFIGURED}, "restarts": want["restarts"]}
    after |= _kept(want)
    if kind == Kind.UPGRADE:
        after["version"] = want["version"]
    if kind in (Kind.SUSPEND, Kind.RESUME):
        after |= {"mode": want["mode"], "message": want["message"]}
    return after


def _kept(state: Mapping[str, Any]) -> dict[str, Any]:
    return {key: state.get(key, before) for key, before in KEPT.items()}


def build(
    server: Server, kind: str, want: Mapping[str, Any], applied: Mapping[str, Any], secrets: Mapping[str, str]
) -> ServerSpec:
    """Return the provider's spec while `kind` runs: what is applied, changed by what `kind` carries out."""
    now = carried_out(kind, want, applied) or dict(want)
    return ServerSpec(
        server_id=str(server.pk),
        server_name=server.server_name,
        version=now["version"],
        vcpu=now["vcpu"],
        memory_mb=now["memory_mb"],
        disk_gb=now["disk_gb"],
        object_gb=now["object_gb"],
        users=now["users"],
        suspended=now["mode"] != RUNNING,
        suspend_message=now["message"],
        federation=now["federation"],
        organisation_id=str(server.organisation_id),
        **_kept(now),
        secrets=secrets,
    )
