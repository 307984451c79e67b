"""A real server's backups, and restores of them: in this process, and in one of their own that can be killed."""

from __future__ import annotations

import contextlib
import io
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from backups.engine.progress import Progress
from backups.engine.restore.command import Restore
from backups.engine.restore.keys import OpenKeys
from backups.engine.restore.request import Request
from backups.engine.settings import FolderStoreAt, Settings, Tools
from backups.engine.stores.base import Store
from provisioning.providers.local.postgres import BIN
from tests.backups.clusters import CAPABILITIES, NOBODY, Cluster
from tests.backups.engine.conftest import ORGANISATION, SERVER, Bench, bench, template
from tests.backups.engine.media import NAME_KEY, Files
from tests.backups.keys import FileKeys
from tests.backups.s3_servers import minio

__all__ = ["bench", "minio", "template"]

ROOT = Path(__file__).resolve().parents[3]
SIGNING_KEY = "ed25519 a_AbCd RG9uJ3QgdXNlIHRoaXMgaW4gYSByZWFsIHNlcnZlciEhISE\n"
TOOLS = Tools(programs=str(BIN), uid=NOBODY, gid=NOBODY, capabilities=CAPABILITIES)


class Server(Bench):
    """A server with a database, media and a signing key, its engine, and what is restored of it."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.files = Files(folder / "media")
        self.target = folder / "restored"
        self.said_by_restore = io.StringIO()
        self.living: list[Cluster] = []
        self.keys: Any = FileKeys(folder / "keys")
        (folder / "name.key").write_bytes(NAME_KEY)
        (folder / "signing.key").write_text(SIGNING_KEY)

    def settings(self, **changes: Any) -> Settings:
        folder = self.folder
        more = {
            "media": str(folder / "media"),
            "name_key_file": str(folder / "name.key"),
            "signing_key_id": "ed25519:a_AbCd",
            "configuration": {"signing.key": str(folder / "signing.key")},
        }
        return super().settings(**(more | changes))

    def request(self, name: str = "r", **changes: Any) -> Request:
        """A request for a restore into the folder of that name."""
        folder = self.folder / name
        folder.mkdir(mode=0o755, exist_ok=True)
        folder.chmod(0o755)
        values: dict[str, Any] = {
            "organisation": ORGANISATION,
            "server": SERVER,
            "store": FolderStoreAt(path=str(self.folder / "store")),
            "data": str(folder / "data"),
            "media": str(folder / "media"),
            "configuration": str(folder / "configuration"),
            "work": str(folder / "work"),
            "signing_key_id": "ed25519:a_AbCd",
            "name_key_file": str(self.folder / "name.key"),
            "tools": TOOLS,
            "settle": None,
        }
        return Request(**(values | changes))

    def restore(self, request: Request, store: Store | None = None) -> dict[str, Any]:
        """Carry a request out here, and return what came of it."""
        restore = Restore(request, store or self.store, None, Progress(self.said_by_restore))  # type: ignore[arg-type]
        restore._opens = OpenKeys(self.keys.open, restore._stop)
        return restore.run()

    def process(self, request: Request) -> subprocess.Popen[bytes]:
        """Carry a request out in a process of its own."""
        path = self.folder / "request.json"
        path.write_bytes(msgspec.json.encode(request))
        words = [sys.executable, "-m", "tests.backups.restore.runner", str(path), str(self.keys.path)]
        paths = {"PYTHONPATH": f"{ROOT / 'platform'}:{ROOT}", "PATH": "/usr/bin:/bin:/usr/sbin:/sbin"}
        return subprocess.Popen(words, cwd=ROOT, env=paths, stdout=subprocess.PIPE)

    def steps(self) -> list[dict[str, Any]]:
        """What restores here told."""
        return [json.loads(line) for line in self.said_by_restore.getvalue().splitlines()]

    def started(self, request: Request) -> Cluster:
        """A PostgreSQL on what was restored."""
        folder = Path(request.data).parent
        cluster = Cluster(folder / "s")
        cluster.data = Path(request.data)
        self.living.append(cluster)
        cluster.start()
        return cluster


@pytest.fixture
def server(bench: Bench) -> Iterator[Server]:
    """A server whose database runs; its engine does not yet."""
    with served(bench) as found:
        yield found


@contextlib.contextmanager
def served(bench: Bench) -> Iterator[Server]:
    """Give the server whose database a bench has."""
    found = Server(bench.folder)
    found.cluster = bench.cluster
    try:
        yield found
    finally:
        sys.stdout.write(found.said.getvalue())
        sys.stdout.write(found.said_by_restore.getvalue())
        found.stop()
        for each in found.living:
            each.stop()


def end(process: subprocess.Popen[bytes], number: int = signal.SIGKILL) -> tuple[int, list[dict[str, Any]]]:
    """End a restore's process and return its exit code and what it told."""
    process.send_signal(number)
    told, _ = process.communicate(timeout=60)
    return process.returncode, [json.loads(line) for line in told.splitlines() if line.endswith(b"}")]
