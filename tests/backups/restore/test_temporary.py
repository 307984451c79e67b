"""The temporary database speaks TLS and one role alone copies it. With Debian's PostgreSQL: the wheel's has no TLS."""

from __future__ import annotations

import os
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from backups.engine.recovering.temporary import serving
from backups.engine.restore.folder import Folder
from backups.engine.restore.request import Request
from backups.engine.settings import FolderStoreAt, Tools
from provisioning.providers.local.processes import Command, passage, spawn_argv
from tests.backups.clusters import NOBODY
from tests.backups.restore.ports import steady
from tests.left_out import leave_out
from tests.prepare import postgres_tls
from tests.tls import Authority

PASSWORD = "a-word-of-its-own"


@pytest.fixture
def place() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="hearth-copy-", dir="/tmp") as folder:
        path = Path(folder)
        path.chmod(0o1777)
        yield path


def programs() -> Path:
    return postgres_tls() or leave_out("there is no PostgreSQL with TLS.")


def run(name: str, *words: str, **variables: str) -> subprocess.CompletedProcess[bytes]:
    program = programs() / name
    command = Command(
        name, (str(program), *words), Path("/"), {}, uid=NOBODY, gid=NOBODY, capabilities=passage(program)
    )
    environment = {"LC_ALL": "C", "PATH": os.defpath, "HOME": "/nonexistent", **variables}
    return subprocess.run(spawn_argv(command), env=environment, capture_output=True, check=False, timeout=120, cwd="/")


def restored(place: Path) -> Request:
    """What a finished restore leaves."""
    data = place / "data"
    done = run("initdb", "-D", str(data), "-U", "postgres", "-A", "trust", "--no-sync")
    assert done.returncode == 0, done.stderr
    request = Request(
        organisation="o",
        server="s",
        store=FolderStoreAt(path=str(place)),
        data=str(data),
        work=str(place / "work"),
        tools=Tools(programs=str(programs()), uid=NOBODY, gid=NOBODY),
    )
    moved = data.rename(place / "made")
    with Folder(request) as folder:
        moved.rename(data)
        folder.state.done = True
        folder.save()
    return request


def test_it_is_copied_by_one_role_that_knows_it_by_its_certificate(place: Path) -> None:
    (port,) = steady(1)
    authority, other = Authority(place, "authority"), Authority(place, "other")
    pair = authority.issue("recovery", ["localhost"])
    request = restored(place)
    common = ("host=localhost", f"port={port}", "user=hearth_backup", "sslmode=verify-full")

    def copy(name: str, trust: Path, password: str) -> subprocess.CompletedProcess[bytes]:
        address = " ".join([*common, f"sslrootcert={trust}"])
        return run(
            "pg_basebackup", "-D", str(place / name), "-X", "stream", "-c", "fast", "-d", address, PGPASSWORD=password
        )

    with serving(
        request,
        threading.Event(),
        host="localhost",
        port=port,
        password=PASSWORD,
        certificate=pair.certificate,
        key=pair.key,
    ) as server:
        assert server.ended() is None
        done = copy("copy", authority.file, PASSWORD)
        assert done.returncode == 0, done.stderr
        assert (place / "copy" / "PG_VERSION").exists()
        assert b"certificate verify failed" in copy("a", other.file, PASSWORD).stderr
        assert b"password authentication failed" in copy("b", authority.file, "another").stderr
        with pytest.raises(psycopg.OperationalError, match="rejects"):
            psycopg.connect(" ".join([*common[:3], "dbname=postgres", f"password={PASSWORD}"]))
        plain = " ".join([*common[:3], "sslmode=disable"])
        refused = run("pg_basebackup", "-D", str(place / "c"), "-d", plain, PGPASSWORD=PASSWORD)
        assert b"rejects replication connection" in refused.stderr or b"no encryption" in refused.stderr
