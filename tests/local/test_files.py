"""What must survive: unit files, sockets' folder, clusters, a full disk, late workers."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from provisioning.providers.local import postgres
from provisioning.providers.local.agent.files import Tombstones, UnitFile, load_units, write
from provisioning.providers.local.agent.machine import FIRST_UID, Machine, disk_error, port_free
from provisioning.providers.local.paths import RuntimeFolderError, runtime_dir
from provisioning.providers.local.processes import Unit, can_drop_privileges, python_for_others

UNIT = UnitFile("6f0b2a1e-7a51-4a55-9b0b-0a2e0b6b6f11", "a.localhost", "1.163.2", 16001, 16002, 70000, 70000, "secret")


@pytest.fixture
def state() -> Iterator[Path]:
    """A state folder that other users can pass, unlike pytest's own."""
    folder = Path(tempfile.mkdtemp(prefix="hearth-files-", dir="/tmp"))
    folder.chmod(0o711)
    yield folder
    shutil.rmtree(runtime_dir(folder), ignore_errors=True)
    shutil.rmtree(folder)


def test_a_unit_file_comes_back_as_it_was(tmp_path: Path) -> None:
    folder = tmp_path / UNIT.server_id
    folder.mkdir()
    UNIT.save(folder)
    assert list(load_units(tmp_path)) == [UNIT]
    assert (folder / "unit.json").stat().st_mode & 0o777 == 0o600


def test_a_full_disk_leaves_the_old_file_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "unit.json"
    write(path, "old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left") as error:
        write(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    failure = disk_error(error.value)
    assert (failure.code, failure.retry) == ("DiskFull", True)
    assert "nothing was lost" in str(failure)


def test_a_damaged_unit_file_stops_no_other_server(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, text in (("a", "{"), ("b", "[]"), ("c", json.dumps({"server_id": "only"}))):
        (tmp_path / name).mkdir()
        (tmp_path / name / "unit.json").write_text(text)
    (tmp_path / UNIT.server_id).mkdir()
    UNIT.save(tmp_path / UNIT.server_id)
    assert list(load_units(tmp_path)) == [UNIT]
    assert capsys.readouterr().err.count("stays down") == 3


def test_a_removed_server_is_remembered(tmp_path: Path) -> None:
    Tombstones(tmp_path).add("one", 7)
    assert Tombstones(tmp_path).fence("one") == 7
    assert Tombstones(tmp_path).fence("two") == 0


def test_identities_and_ports_never_clash(state: Path) -> None:
    machine = Machine.survey(state, state / "environments")
    first = machine.new_ports([])
    taken = UnitFile("x", "x", "1", *first, *machine.new_identity([]), "")
    assert not set(first) & set(machine.new_ports([taken]))
    assert all(map(port_free, first))
    if not machine.isolation:
        uid, gid = machine.new_identity([taken])
        assert uid is not None
        assert uid >= FIRST_UID
        assert (uid == gid, uid != taken.uid) == (True, True)


def test_a_closed_folder_is_told_as_the_reason_for_no_isolation(state: Path) -> None:
    (state / "closed").mkdir(mode=0o700)
    machine = Machine.survey(state / "closed" / "state", state / "environments")
    shutil.rmtree(runtime_dir(state / "closed" / "state"))
    assert machine.isolation


def test_the_sockets_folder_is_short_stable_and_ours(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = runtime_dir(state)
    assert folder == runtime_dir(state / "servers" / "..")
    assert folder.stat().st_mode & 0o777 == 0o711
    assert len(str(folder / UNIT.server_id / ".s.PGSQL.5432")) < 107
    with monkeypatch.context() as patch:
        patch.setattr(os, "geteuid", lambda: 4242)
        with pytest.raises(RuntimeFolderError, match="belongs to somebody else"):
            runtime_dir(state)


def test_a_cluster_is_utf8_locale_c_on_a_socket_and_wants_its_password(state: Path) -> None:
    uid = 70_001 if not can_drop_privileges(state / "x") else (postgres.nobody()[0] if os.geteuid() == 0 else None)
    sockets, data = state / "s", state / "data"
    sockets.mkdir(mode=0o700)
    if uid is not None:
        os.chown(sockets, uid, uid)
    asyncio.run(_cluster(data, sockets, uid))
    assert data.stat().st_mode & 0o777 == 0o700
    assert not [path for path in state.iterdir() if path.name.startswith(".")]


async def _cluster(data: Path, sockets: Path, uid: int | None) -> None:
    await postgres.initdb(data, superuser="hearth", password="right", uid=uid, gid=uid)
    unit = Unit(postgres.server_command(data, sockets, uid=uid, gid=uid, log=data.parent / "log"))
    await unit.start()
    try:
        script = data.with_name("ask.sql")
        script.write_text(
            "SELECT DISTINCT current_setting('server_encoding'), datcollate, current_setting('listen_addresses')"
            " FROM pg_database;"
        )
        assert await postgres.execute(script, data, sockets, user="hearth", password="right") == ["UTF8|C|"]
        with pytest.raises(postgres.PostgresError, match="does not let us in"):
            await postgres.execute(script, data, sockets, user="hearth", password="wrong")
        script.write_text("SELECT nothing;")
        with pytest.raises(postgres.PostgresError, match=r"refused what it was asked.*nothing"):
            await postgres.execute(script, data, sockets, user="hearth", password="right")
    finally:
        await unit.stop()


def test_initdb_that_fails_leaves_nothing(state: Path) -> None:
    uid = postgres.nobody()[0] if os.geteuid() == 0 else None
    with pytest.raises(postgres.PostgresError, match="initdb failed"):
        asyncio.run(postgres.initdb(state / "data", superuser="pg_reserved", password="x", uid=uid, gid=uid))
    assert list(state.iterdir()) == []


def test_a_lock_that_names_somebody_elses_process_is_cleared(tmp_path: Path) -> None:
    lock = tmp_path / "postmaster.pid"
    lock.write_text(f"{os.getpid()}\n{tmp_path}\n")
    postgres.clear_stale_lock(tmp_path)
    assert not lock.exists()
    lock.write_text("4194305\n")  # above the kernel's largest: nobody has it, and PostgreSQL copes
    postgres.clear_stale_lock(tmp_path)
    assert lock.exists()


def test_a_user_without_a_name_is_told_what_initdb_misses(state: Path) -> None:
    """As in a container that is started with a user id of its own."""
    if os.geteuid() == 0:
        state.chmod(0o777)
        script = (
            "import asyncio, pathlib, sys; from provisioning.providers.local import postgres;"
            "asyncio.run(postgres.initdb(pathlib.Path(sys.argv[1]), superuser='hearth', password=None))"
        )
        python = python_for_others()
        assert python
        path = ":".join([*sys.path[1:], str(Path(__file__).parents[2])])
        words = ["setpriv", "--reuid=61234", "--regid=61234", "--clear-groups", str(python), "-c", script]
        done = subprocess.run(
            [*words, str(state / "data")],
            env={"PYTHONPATH": path},
            capture_output=True,
            text=True,
            check=False,
            cwd="/",
        )
        assert "Give this user id a line in /etc/passwd" in done.stderr
    assert not (state / "data").exists()
