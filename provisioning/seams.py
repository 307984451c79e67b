"""What higher layers register here, so that `provisioning` never imports them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from provisioning.models import Operation
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


Work = Callable[["Context"], None]
_work: dict[str, Work] = {}


def register_work(name: str, work: Work) -> None:
    """Let `work` be what the step `name` does in operations about backups (`steps.STEPS`): idempotent, raises `NotYet`
    and `ProviderError`."""
    _work[name] = work


def work(name: str, context: Context) -> None:
    """Do a step that a higher layer knows."""
    _work[name](context)


Ended = Callable[["Operation"], None]
_ended: list[Ended] = []


def register_ended(heard: Ended) -> None:
    """Let `heard` be called with each operation that ended, in the transaction in which it did."""
    _ended.append(heard)


def ended(operation: Operation) -> None:
    """Say that an operation succeeded, failed or was cancelled."""
    for heard in _ended:
        heard(operation)


_belongings: list[Work] = []


def register_belongings(remove: Work) -> None:
    """Let `remove` take away what a server has beside itself where it runs, before the server itself is removed."""
    _belongings.append(remove)


def remove_belongings(context: Context) -> None:
    """Take all of that away: idempotent, raises `ProviderError`."""
    for remove in _belongings:
        remove(context)


def take_point(kind: str, context: Context) -> None:
    """Have a restore point taken; return when it is there, or when the log says why there is none."""
    takers = _points.get(kind, [])
    for take in takers:
        take(context)
    if not takers:
        context.log("Nothing backs this server up, so no restore point is taken.")
