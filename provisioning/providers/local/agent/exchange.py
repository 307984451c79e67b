"""A server and an instance of it exchange their databases and media, and nobody is ever left with a part of both.

The server's unit file is the journal (`exchanging`). It says which instance, whose users and passwords each has
afterwards (files keep their owners: only the units exchange theirs), and which of two steps it is at:

1. for each folder: the server's goes to the instance's side as `.coming-<name>`, the instance's to the server
2. for each folder: `.coming-<name>` gets its name

In either step the names alone say what is done already, so the same again goes on after a crash at any point. It always
goes forward: once the journal is written, the exchange will be made.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from provisioning.providers.base import ProviderError
from provisioning.providers.local.agent.files import UNIT
from provisioning.providers.local.agent.folder import Folder
from security.durable import sync_folder

NAMES = ("postgres", "media")
THEIRS = ("uid", "gid", "superuser_password")
"""What goes with the data."""


def begin(server: Folder, instance: Folder, *, restored: bool) -> None:
    """Write down that it will be made. Nothing of either runs, and both have all their folders."""
    for one in (server, instance):
        for name in NAMES:
            place = one.path / name
            if not place.is_dir() or place.is_symlink() or place.stat().st_dev != server.path.stat().st_dev:
                raise ProviderError(
                    f"{place} is not a folder on the disk of the servers, so it can't be exchanged. Nothing was "
                    "changed. Staff must look into this machine.",
                    code="MachineError",
                    retry=False,
                )
    server.unit.exchanging = {
        "instance": instance.unit.server_id,
        "restored": restored,
        "step": 1,
        "server": {name: getattr(instance.unit, name) for name in THEIRS},
        "other": {name: getattr(server.unit, name) for name in THEIRS},
    }
    try:
        server.save()
    except OSError:
        server.unit.exchanging = _written(server)
        raise


def finish(server: Folder, instance: Folder) -> None:
    """Make it, or go on with it. Raises `OSError`; then the same again is right."""
    journal = server.unit.exchanging
    if journal["step"] == 1:
        for name in NAMES:
            coming = _coming(instance, name)
            if not coming.exists():
                (server.path / name).rename(coming)
            if not (server.path / name).exists():
                (instance.path / name).rename(server.path / name)
        _sync(server, instance)
        server.unit.exchanging = journal = {**journal, "step": 2}
        server.save()
    for name in NAMES:
        if _coming(instance, name).exists():
            _coming(instance, name).rename(instance.path / name)
    _sync(server, instance)
    _own(instance, journal["other"])
    instance.unit.exchanged = bool(journal["restored"])
    instance.save()
    _own(server, journal["server"])
    server.unit.exchanging = {}
    try:
        server.save()
    except OSError:
        server.unit.exchanging = journal
        raise


def _written(server: Folder) -> dict[str, Any]:
    """Return the journal as it lies on the disk: what this agent's next start would go by."""
    found: dict[str, Any] = json.loads((server.path / UNIT).read_text(encoding="utf-8"))["exchanging"]
    return found


def _coming(instance: Folder, name: str) -> Path:
    return instance.path / f".coming-{name}"


def _sync(*folders: Folder) -> None:
    for each in folders:
        sync_folder(each.path)


def _own(folder: Folder, theirs: dict[str, Any]) -> None:
    """Let the unit be the user that its data belongs to now, and give that user what else it writes."""
    for name in THEIRS:
        setattr(folder.unit, name, theirs[name])
    shutil.rmtree(folder.sockets, ignore_errors=True)  # a lock of the other user's in it would stop PostgreSQL
    folder.own()
