"""What higher layers register here, so that `provisioning` never imports them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from provisioning.steps import Context
    from tenants.models import Server


Backup = Callable[["Server"], Mapping[str, Any]]
_backups: list[Backup] = []


def register_backup(source: Backup) -> None:
    """Let `source` say what backs a server up (`ServerSpec.backup`). Called once, by the app that owns backups."""
    _backups.append(source)


def backup_of(server: Server) -> Mapping[str, Any]:
    """Return what backs the server up; empty where nothing does."""
    found: dict[str, Any] = {}
    for source in _backups:
        found |= source(server)
    return found


RestorePoint = Callable[["Context"], None]
_points: dict[str, list[RestorePoint]] = {}
FINAL, BEFORE_UPGRADE = "final", "before-upgrade"


def register_point(kind: str, take: RestorePoint) -> None:
    """Let `take` have a restore point taken, as a step of an operation: idempotent, raises `NotYet` and
    `ProviderError`. `kind` is `FINAL` (before a server is removed) or `BEFORE_UPGRADE`."""
    _points.setdefault(kind, []).append(take)


def take_point(kind: str, context: Context) -> None:
    """Have a restore point taken; return when it is there, or when the log says why there is none."""
    takers = _points.get(kind, [])
    for take in takers:
        take(context)
    if not takers:
        context.log("Nothing backs this server up, so no restore point is taken.")
