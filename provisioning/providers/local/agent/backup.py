"""The process that backs one server up, beside its PostgreSQL and its Synapse. Its end never concerns them.

What it is, the spec says: a Python module, run as `python -m <module> agent <settings.json>` by the agent's own user,
because neither the server's identity nor the older backups may be within reach of the server's own user.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from provisioning.providers.local import postgres
from provisioning.providers.local.agent import engine
from provisioning.providers.local.agent.database import SUPERUSER
from provisioning.providers.local.agent.files import write
from provisioning.providers.local.agent.folder import Folder
from provisioning.providers.local.processes import Command, Unit
from security.durable import replace_file

ROLE = "hearth_backup"
"""backup.sql names it."""
SCRIPT, END_SCRIPT = (Path(__file__).with_name(name) for name in ("backup.sql", "backup-end.sql"))
STOP_SECONDS = 7.0
STATUS_MOST = 1 << 16
OURS = ("wanted.json", "settings.json", "password", "state")


class Backup:
    """Keeps the process as `wanted.json` says. The caller holds the server's lock around each method but `observed`."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self.path = folder.path / "backup"
        self._unit: Unit | None = None
        self._running = ""
        self._starting: asyncio.Task[None] | None = None

    def configure(self, wanted: Mapping[str, Any]) -> bool:
        """Write down what backs the server up; nothing at all ends that. False if it said so already."""
        text = json.dumps(wanted, indent=1, sort_keys=True)
        if (self._wanted() or {}) == json.loads(text):
            return False
        if not wanted:
            (self.path / "wanted.json").unlink(missing_ok=True)
            return True
        files = engine.checked(wanted, "settings", OURS)
        engine.make_folder(self.path, self._folder.unit.gid)
        for name, data in files.items():
            replace_file(self.path / name, data)
        write(self.path / "wanted.json", text)
        return True

    async def apply(self) -> None:
        """Start it, again if it runs with something else, or end it. Does not wait for its start."""
        wanted = self._wanted()
        digest = hashlib.sha256(json.dumps(wanted).encode()).hexdigest() if wanted else ""
        if self._running and self._running != digest:
            await self.stop()
        if wanted and not self._running:
            self._running = digest
            self._unit = Unit(self._command(str(wanted["module"])), before_start=self._before)
            self._starting = asyncio.create_task(self._unit.start())
        elif not wanted and self._folder.unit.backup_password:
            self._starting = asyncio.create_task(self._forget())

    async def stop(self) -> None:
        """End it, and keep it stopped."""
        unit, starting, self._unit, self._starting = self._unit, self._starting, None, None
        self._running = ""
        if starting is not None:
            starting.cancel()
            await asyncio.gather(starting, return_exceptions=True)
        if unit is not None:
            await unit.stop()

    @property
    def observed(self) -> dict[str, Any]:
        """What there is to see of it; empty for a server that is not backed up."""
        if self._unit is None:
            return {}
        found: dict[str, Any] = {}
        with contextlib.suppress(OSError, ValueError), (self.path / "state" / "status.json").open("rb") as file:
            found = json.loads(file.read(STATUS_MOST))
        unit = self._unit
        return {**found, "pid": unit.pid, "process": unit.state, "crashes": unit.crashes, "message": unit.message}

    def _wanted(self) -> dict[str, Any] | None:
        try:
            found: dict[str, Any] = json.loads((self.path / "wanted.json").read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            return None
        return found

    async def _before(self) -> None:
        """Make the role for it, also in a database from before there were backups, and say where things are here."""
        engine.make_folder(self.path, self._folder.unit.gid)
        unit = self._folder.unit
        if not unit.backup_password:
            unit.backup_password = postgres.new_password()
            self._folder.save()
        write(self.path / "password", unit.backup_password + "\n")
        await self._execute(SCRIPT)
        settings = {**(self._wanted() or {}).get("settings", {}), **self._places()}
        write(self.path / "settings.json", json.dumps(settings, indent=1))

    async def _forget(self) -> None:
        """Take slot and role out of the database. What fails is done with the next start."""
        await self._execute(END_SCRIPT)
        shutil.rmtree(self.path, ignore_errors=True)
        self._folder.unit.backup_password = ""
        self._folder.save()

    async def _execute(self, script: Path) -> None:
        unit = self._folder.unit
        await postgres.execute(
            script,
            self._folder.data,
            self._folder.sockets,
            user=SUPERUSER,
            password=unit.superuser_password,
            variables={"BACKUP_PASSWORD": unit.backup_password},
        )

    def _places(self) -> dict[str, Any]:
        """Return the part of the settings that this machine decides. Paths are as this process sees them now."""
        folder, unit = self._folder, self._folder.unit
        config = folder.config.parent
        return {
            "server": unit.server_id,
            "server_name": unit.server_name,
            "synapse_version": unit.version,
            "signing_key_id": unit.key_id,
            "database": {"host": str(folder.sockets), "user": ROLE, "password_file": str(self.path / "password")},
            "tools": engine.tools(folder),
            "state": str(self.path / "state"),
            "media": str(folder.places.media),
            "configuration": {name: str(config / name) for name in ("homeserver.yaml", "log.yaml", "signing.key")},
            "hearth": engine.hearth(folder.credentials),
        }

    def _command(self, module: str) -> Command:
        return engine.command(
            f"Backups of {self._folder.unit.server_name}",
            (module, "agent", str(self.path / "settings.json")),
            log=self._folder.path / "logs" / "backup.log",
            stop_timeout=STOP_SECONDS,
            # Before a database, after a homeserver: it comes back without having lost anything.
            oom_score=400,
        )
