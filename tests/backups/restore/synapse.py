"""A real homeserver of the agent's with people on it, its backups, and its data brought back."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest

from backups.engine import agent as engine_agent
from backups.engine.database import stream
from backups.engine.restore.request import Settle
from backups.engine.settings import Settings, Tools
from provisioning.matrix import Homeserver as Client
from provisioning.matrix import MatrixError, json_web_token
from provisioning.providers import base
from provisioning.providers.local.agent.files import load_units
from provisioning.providers.local.keys import verify_key
from provisioning.providers.local.paths import runtime_dir
from provisioning.providers.local.postgres import BIN
from tests.backups.clusters import CAPABILITIES, ROLE
from tests.backups.restore.conftest import Server
from tests.local.conftest import Agent, Homeserver, agent

__all__ = ["agent"]
SINCE = Path(base.__file__).with_name("since.sql")


class Person:
    """An account with one session, as a client has it."""

    def __init__(self, client: Client, name: str, secret: str) -> None:
        self.client = client
        body = {"type": "org.matrix.login.jwt", "token": json_web_token(name, secret)}
        found = client.request("POST", "/_matrix/client/v3/login", body=body)
        self.token, self.id, self.device = found["access_token"], found["user_id"], found["device_id"]
        self.next = ""

    def ask(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        return self.client.request(method, f"/_matrix/client/v3/{path}", token=self.token, body=body)

    def say(self, room: str, text: str) -> str:
        body = {"msgtype": "m.text", "body": text}
        return str(self.ask("PUT", f"rooms/{room}/send/m.room.message/{uuid.uuid4().hex}", body)["event_id"])

    def sync(self) -> dict[str, Any]:
        """What is new since the last time."""
        since = f"&since={self.next}" if self.next else ""
        found = self.ask("GET", f"sync?timeout=0{since}")
        self.next = found["next_batch"]
        return found

    def refusal(self) -> str:
        """Why the server lets it no longer in."""
        with pytest.raises(MatrixError) as caught:
            self.sync()
        return caught.value.errcode

    def heard(self, room: str) -> list[str]:
        """The messages that are new since the last time."""
        timeline = self.sync()["rooms"]["join"].get(room, {}).get("timeline", {}).get("events", [])
        return [each["content"]["body"] for each in timeline if each["type"] == "m.room.message"]

    def give_keys(self, *names: str) -> int:
        """Upload one-time keys, and return how many there are."""
        keys = {f"curve25519:{name}": "UGxlYXNlIGRvIG5vdCB1c2UgdGhpcyBpbiByZWFsIGxpZmU" for name in names}
        found = self.ask("POST", "keys/upload", {"one_time_keys": keys})
        return int(found["one_time_key_counts"]["curve25519"])

    def claim(self, other: Person) -> dict[str, Any]:
        wanted = {"one_time_keys": {other.id: {other.device: "curve25519"}}}
        found: dict[str, Any] = self.ask("POST", "keys/claim", wanted)["one_time_keys"]
        keys: dict[str, Any] = found.get(other.id, {}).get(other.device, {})
        return keys


class Database:
    """The homeserver's PostgreSQL, wherever its data came from."""

    def __init__(self, homeserver: Homeserver) -> None:
        (self.unit,) = (
            each for each in load_units(homeserver.folder.parent) if each.server_id == homeserver.spec.server_id
        )
        self.folder = runtime_dir(homeserver.agent.state) / homeserver.spec.server_id

    def connect(self) -> psycopg.Connection[tuple[Any, ...]]:
        secret = self.unit.superuser_password
        return psycopg.connect(
            host=str(self.folder), user="postgres", password=secret, dbname="synapse", autocommit=True
        )

    def value(self, query: str, *values: object) -> Any:
        with self.connect() as connection:
            found = connection.execute(query.encode(), values or None)
            return (found.fetchone() or [None])[0] if found.description else None

    def psql(self, script: Path, database: str = "synapse", **variables: str) -> str:
        words = ["-h", str(self.folder), "-U", "postgres", "-d", database, "-X", "-q", "-A", "-t", "-f", str(script)]
        secret = {"PGPASSWORD": self.unit.superuser_password, **variables}
        done = subprocess.run([str(BIN / "psql"), *words], env=secret, capture_output=True, text=True, check=True)
        return done.stdout


class Backed(Server):
    """A homeserver of the agent's, its engine in this process, and its data brought back."""

    def __init__(self, folder: Path, homeserver: Homeserver) -> None:
        super().__init__(folder)
        self.homeserver = homeserver
        self.cluster: Any = Database(homeserver)
        self.cluster.psql(ROLE, "postgres", BACKUP_PASSWORD="secret")
        self.key_id, _ = verify_key(homeserver.spec.secrets["signing_key"])
        unit = self.cluster.unit
        self.tools = Tools(programs=str(BIN), uid=unit.uid, gid=unit.gid, capabilities=CAPABILITIES)

    def settings(self, **changes: Any) -> Settings:
        home = self.homeserver.folder
        more = {
            "tools": self.tools,
            "media": str(home / "media"),
            "signing_key_id": self.key_id,
            "configuration": {name: str(home / "config" / name) for name in ("signing.key", "homeserver.yaml")},
        }
        return super().settings(**(more | changes))

    def back_to(self, moment: datetime, **settle: Any) -> dict[str, Any]:
        """Restore beside it, and let it run on what was restored."""
        home = self.homeserver.folder
        request = self.request(
            to=moment,
            signing_key_id=self.key_id,
            tools=self.tools,
            data=str(home / "restored"),
            media=str(home / "restored-media"),
            work=str(home / "restoring"),
            settle=Settle(**settle),
        )
        found = self.restore(request)
        self.homeserver.stop()
        for name, restored in (("postgres", "restored"), ("media", "restored-media")):
            (home / name).rename(home / f"old-{name}")
            (home / restored).rename(home / name)
        self.homeserver.start()
        self.homeserver.wait_until_runs()
        return found


@pytest.fixture
def backed(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> Iterator[Backed]:
    monkeypatch.setattr(stream, "TURN", 0.1)
    monkeypatch.setattr(engine_agent, "TURN", 0.1)
    homeserver = Homeserver(agent, "alice")
    homeserver.make()
    homeserver.start()
    folder = Path(tempfile.mkdtemp(prefix="hb-", dir="/tmp"))
    folder.chmod(0o755)
    found = Backed(folder, homeserver)
    try:
        yield found
    finally:
        sys.stdout.write(found.said.getvalue())
        sys.stdout.write(found.said_by_restore.getvalue())
        found.stop()
        for each in found.living:
            each.stop()
        homeserver.remove()
        shutil.rmtree(folder)
