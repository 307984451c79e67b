"""A real server with people on it, backed up by its engine under keys of Hearth's own, and instances of it."""

from __future__ import annotations

import base64
import json
import os
import uuid
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil

from audit.services import SYSTEM
from backups.engine.catalogue import Catalogue
from backups.engine.stores.folder import FolderStore
from provisioning.matrix import Homeserver as Client
from provisioning.providers.base import Recovering, Recovery
from security.datakeys import grants
from security.models import UnwrapGrant
from security.transport.identities import Identity
from tests.backups.restore.synapse import Database, Person
from tests.local.authority import Authority
from tests.local.conftest import Agent, Homeserver, fences, quiet, wait_for

LONG = 120.0
NOWHERE = "https://127.0.0.1:9"
"""Nobody listens there."""
QUICK = {"media_every": 0.5, "moment_every": 0.5, "tail_every": 0.5, "sync_every": 0.5}


class Backed(Homeserver):
    """A server of the agent's whose engine asks the Hearth at `address` for keys."""

    def __init__(self, agent: Agent, organisation: uuid.UUID, authority: Authority, address: str) -> None:
        super().__init__(agent, "recovered")
        self.organisation, self.authority, self.address = organisation, authority, address
        self.id = uuid.UUID(self.spec.server_id)
        self.store = agent.state / "store" / self.spec.server_id
        self.files = {"name.key": base64.b64encode(os.urandom(32)).decode()}
        told = {"organisation": str(organisation), "name_key_file": "name.key", "policy": QUICK}
        settings = {**told, "store": {"type": "folder", "path": str(self.store), "make": True}}
        backup = {"module": "backups.engine", "settings": settings, "files": self.files}
        self.spec = replace(self.spec, backup=backup)

    def introduce(self, address: str) -> None:
        """Give its agent a certificate, and tell where Hearth listens."""
        provider, key = self.agent.provider, self.spec.server_id
        asked = provider.certificate_request(key, fence=next(fences))
        chain = self.authority.issue(asked, Identity("agent", key))
        provider.install_certificate(key, chain=chain, trust=self.authority.trust, address=address, fence=next(fences))

    @property
    def backup(self) -> dict[str, Any]:
        """How its engine is."""
        found: dict[str, Any] = self.seen().details["backup"]
        return found

    @property
    def ended_lines(self) -> list[str]:
        """Why lines of its backups ended."""
        text = (self.folder / "backup" / "state" / "state.json").read_text()
        return [each["reason"] for each in json.loads(text)["ended"]]

    def covered(self, moment: datetime) -> bool:
        """Tell whether that moment can be restored."""
        catalogue = Catalogue.read(FolderStore("folder", self.store), str(self.organisation), self.spec.server_id)
        return any(each.begin <= moment <= each.end for each in catalogue.windows())

    def now(self) -> datetime:
        found: datetime = Database(self).value("SELECT clock_timestamp()")
        return found

    def since(self) -> dict[str, Any]:
        found = self.agent.provider.since(self.spec.server_id)
        assert found is not None
        return dict(found)

    def exchange(self, instance: Instance, *, restored: bool) -> None:
        provider, key = self.agent.provider, self.spec.server_id
        provider.exchange(key, instance.spec.server_id, restored=restored, fence=next(fences), progress=quiet)

    def said(self, person: Person, room: str) -> list[str]:
        """What is said in a room, the newest first, as a person reads it here with the session that they have."""
        with Client(self.seen().homeserver_url, self.spec.server_name) as client:
            return said(client, person, room)


class Instance(Homeserver):
    """Another unit, for what is brought back of a server."""

    def __init__(self, source: Backed, grant: uuid.UUID) -> None:
        super().__init__(source.agent, "recovered")
        self.source, self.grant = source, grant
        self.spec = replace(source.spec, server_id=self.spec.server_id, federation=False, backup={})

    def recover(self, moment: datetime, since: Mapping[str, Any] | None = None, **changes: Any) -> None:
        source = self.source
        request = {
            "organisation": str(source.organisation),
            "server": source.spec.server_id,
            "store": {"type": "folder", "path": str(source.store)},
            "name_key_file": "name.key",
            "to": moment.isoformat(),
            "grant": str(self.grant),
            "settle": {"since": dict(since)} if since else None,
        }
        key = source.spec.server_id
        recovery = Recovery(key, key, "backups.engine", request | changes, source.files)
        self.agent.provider.recover(self.spec, recovery, fence=next(fences), progress=quiet)

    @property
    def recovering(self) -> Recovering:
        return self.agent.provider.recovering(self.spec.server_id)

    def outcome(self) -> Recovering:
        """How it ended."""
        wait_for(lambda: self.recovering.state != "running", LONG)
        return self.recovering

    def program(self) -> psutil.Process | None:
        """The process that brings it back, where there is one now."""
        folder = str(self.folder.name)
        return next(
            (each for each in self.agent.family() if each.is_running() and _restores(each, folder)),
            None,
        )

    def said(self, person: Person, room: str) -> list[str]:
        with Client(self.seen().homeserver_url, self.spec.server_name) as client:
            return said(client, person, room)


def said(client: Client, person: Person, room: str) -> list[str]:
    """Return what is said in a room, the newest first."""
    path = f"/_matrix/client/v3/rooms/{room}/messages?dir=b&limit=50"
    found = client.request("GET", path, token=person.token)["chunk"]
    return [each["content"].get("body", "") for each in found if each["type"] == "m.room.message"]


def _restores(process: psutil.Process, folder: str) -> bool:
    try:
        words = process.cmdline()
    except psutil.Error:
        return False
    return "backups.engine" in words and "restore" in words and any(folder in word for word in words)


def granted(organisation: uuid.UUID, server: uuid.UUID) -> uuid.UUID:
    """Open a grant to restore a server beside itself."""
    row = grants.open_grant(
        SYSTEM,
        organisation=organisation,
        source=server,
        target=server,
        purpose=UnwrapGrant.Purpose.RESTORE,
        holder=uuid.uuid4(),
        fence=1,
        reason="Alice restores",
    )
    return uuid.UUID(str(row.pk))


def secret_left(folder: Path, secrets: Mapping[str, str]) -> list[str]:
    """Return the files of a recovery that hold a secret of the server."""
    words = [secrets["database"].encode()]
    found = [path for path in folder.rglob("*") if path.is_file()]
    return [path.name for path in found if any(word in path.read_bytes() for word in words)]
