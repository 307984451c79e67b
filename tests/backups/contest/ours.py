"""Hearth's engine as a contestant: its two commands, with keys from a file in Hearth's place."""

from __future__ import annotations

import json
import os
import queue
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from backups.engine.restore.request import Request
from backups.engine.settings import Database, Policy, S3StoreAt, Settings, Tools
from tests.backups.clusters import NOBODY
from tests.backups.contest.ground import PROGRAMS, Ground
from tests.backups.contest.watch import Watch
from tests.backups.engine.media import NAME_KEY

ROOT = Path(__file__).resolve().parents[3]
ORGANISATION, SERVER = "alice-and-friends", "00000000-0000-4000-8000-00000000000a"
TOOLS = Tools(programs=str(PROGRAMS), uid=NOBODY, gid=NOBODY)
LIMIT = 1800.0
REST = Policy(base_every=10**6)
"""Only what is asked for."""


class Hearth:
    """One round: an engine that is started over an empty place, asked for things, and ended."""

    name = "hearth"
    settings_told = f"zstd {REST.compression} for the database, 3 where it helps for media; XChaCha20-Poly1305, AES-GCM"

    def __init__(self, ground: Ground, place: str) -> None:
        bucket, name = place.split("/")
        self.ground = ground
        self._folder = folder = ground.folder / name
        self._process: subprocess.Popen[bytes] | None = None
        self._said = queue.Queue[dict[str, Any]]()
        folder.mkdir(mode=0o755)
        (folder / "name.key").write_bytes(NAME_KEY)
        (folder / "homeserver.yaml").write_text("server_name: alice.hearth.localhost\n")
        known = {"access_key": ground.minio.key_id, "secret_key": ground.minio.secret}
        (folder / "credentials.json").write_text(json.dumps(known))
        self._store = S3StoreAt(
            endpoint=ground.minio.endpoint,
            bucket=bucket,
            prefix=folder.name,
            credentials_file=str(folder / "credentials.json"),
            certificates=str(ground.minio.trust),
        )
        self._keys = folder / "keys"
        self._point = ""
        self.peak_mb: dict[str, float] = {}

    def _settings(self) -> Settings:
        database = Database(host=str(self.ground.cluster.folder), password_file=str(self.ground.password))
        return Settings(
            organisation=ORGANISATION,
            server=SERVER,
            server_name="alice.hearth.localhost",
            database=database,
            tools=TOOLS,
            state=str(self._folder / "state"),
            store=self._store,
            media=str(self.ground.media),
            name_key_file=str(self._folder / "name.key"),
            configuration={"homeserver.yaml": str(self._folder / "homeserver.yaml")},
            policy=REST,
        )

    def backup(self) -> dict[str, float]:
        """Start the engine, and wait for its first restore point."""
        (self._folder / "settings.json").write_bytes(msgspec.json.encode(self._settings()))
        with Watch(lambda: self._pid) as watch:
            self._start()
            stored = self._await("point-stored")
        self._point = stored["point"]
        self.peak_mb["backup"] = watch.peak_mb
        return {"all": watch.seconds}

    def unchanged(self) -> dict[str, float]:
        """Ask for a moment, and for a restore point, when nothing has changed. The first asking learns the media."""
        for _ in range(2):
            with Watch(lambda: self._pid) as moment:
                self._ask("moment")
                self._await("moment")
        with Watch(lambda: self._pid) as point:
            self._ask("point")
            self._await("point-stored")
        return {"moment": moment.seconds, "point": point.seconds}

    def at_rest_mb(self) -> float:
        """Return the engine's own resident memory, without its children."""
        text = Path(f"/proc/{self._pid}/status").read_text()
        return int(text.split("VmRSS:")[1].split()[0]) * 1024 / 10**6

    def restore(self, target: Path) -> dict[str, float]:
        """Bring the first restore point back, as files on the disk."""
        request = Request(
            organisation=ORGANISATION,
            server=SERVER,
            store=self._store,
            point=self._point,
            data=str(target / "data"),
            media=str(target / "media"),
            work=str(target / "work"),
            name_key_file=str(self._folder / "name.key"),
            tools=TOOLS,
            settle=None,
        )
        (self._folder / "request.json").write_bytes(msgspec.json.encode(request))
        words = ["tests.backups.restore.runner", str(self._folder / "request.json"), str(self._keys)]
        with Watch(lambda: process.pid) as watch:
            process = _python(*words)
            told, _ = process.communicate(timeout=LIMIT)
        lines = [json.loads(line) for line in told.splitlines()]
        if process.returncode != 0:
            raise RuntimeError(f"the restore failed: {lines[-1]}")
        self.peak_mb["restore"] = watch.peak_mb
        parts = next(line for line in lines if line["event"] == "restored")["seconds"]
        return {"all": watch.seconds, **{name: value for name, value in parts.items() if name != "all"}}

    def end(self) -> None:
        """End the engine and forget everything; the replication slot with it."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(60)
            self._process = None
            slots = "SELECT count(pg_drop_replication_slot(slot_name)) FROM pg_replication_slots"
            self.ground.cluster.value(slots)
        shutil.rmtree(self._folder)

    @property
    def _pid(self) -> int:
        return self._process.pid if self._process else -1

    def _start(self) -> None:
        words = ["tests.backups.contest.engine", str(self._folder / "settings.json"), str(self._keys)]
        self._process = _python(*words)
        threading.Thread(target=self._listen, args=(self._process,), daemon=True).start()

    def _listen(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            self._said.put(json.loads(line))

    def _ask(self, what: str) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        while not self._said.empty():
            self._said.get()
        self._process.stdin.write(f"{what}\n".encode())
        self._process.stdin.flush()

    def _await(self, event: str) -> dict[str, Any]:
        return next(line for line in self._lines() if line["event"] == event)

    def _lines(self) -> Iterator[dict[str, Any]]:
        while True:
            line = self._said.get(timeout=LIMIT)
            if line["event"] in {"fault", "stopped"}:
                raise RuntimeError(f"the engine says {line}")
            yield line


def _python(*words: str) -> subprocess.Popen[bytes]:
    environment = {"PYTHONPATH": f"{ROOT / 'platform'}:{ROOT}", "PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"}
    argv = [sys.executable, "-m", *words]
    return subprocess.Popen(argv, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
