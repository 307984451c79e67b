"""What higher layers register here, so that `provisioning` never imports them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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
