"""PostgreSQL's own look at a restored database, by an installation that has `pg_amcheck`."""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from backups.engine.restore import amcheck
from backups.engine.restore.errors import RestoreError
from backups.engine.settings import Tools
from provisioning.providers.local.postgres import BIN
from tests.backups import clusters
from tests.backups.clusters import CAPABILITIES, NOBODY, Cluster
from tests.left_out import leave_out

PAGE = 8192


@pytest.fixture(params=["the system's", "the wheel's"])
def database(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Cluster, Tools]]:
    """A running cluster with a table and its index, and the programs that it is of."""
    programs = BIN
    if request.param == "the system's":
        installed = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_amcheck"))
        if not installed:
            leave_out("PostgreSQL is missing. Install your system's package postgresql, or run make test as root.")
        programs = installed[-1].parent
    monkeypatch.setattr(clusters, "BIN", programs)
    folder = Path(tempfile.mkdtemp(prefix="hb-", dir="/tmp"))
    folder.chmod(0o755)
    cluster = Cluster(folder / "a")
    if programs != BIN:
        del cluster.settings["io_method"]  # of PostgreSQL 18
    try:
        cluster.make()
        cluster.value("CREATE TABLE message (id int PRIMARY KEY, body text)")
        cluster.value("INSERT INTO message SELECT n, 'hello ' || n FROM generate_series(1, 2000) AS n")
        capabilities = CAPABILITIES if programs == BIN else ()
        yield cluster, Tools(programs=str(programs), uid=NOBODY, gid=NOBODY, capabilities=capabilities)
    finally:
        cluster.stop()
        shutil.rmtree(folder)


def look(cluster: Cluster, tools: Tools) -> bool:
    return amcheck.look(cluster.folder, "postgres", "postgres", tools, threading.Event())


def test_what_is_sound_passes_and_what_is_not_is_named(database: tuple[Cluster, Tools]) -> None:
    cluster, tools = database
    if tools.programs == str(BIN):
        assert look(cluster, tools) is False, "the wheel has no such extension, and nobody claims that it was used"
        return
    assert look(cluster, tools) is True
    path = cluster.data / str(cluster.value("SELECT pg_relation_filepath('message_pkey')"))
    cluster.stop()
    pages = bytearray(path.read_bytes())
    first, second = pages[PAGE : 2 * PAGE], pages[2 * PAGE : 3 * PAGE]
    pages[PAGE : 2 * PAGE], pages[2 * PAGE : 3 * PAGE] = second, first  # two pages of the index in each other's place
    path.write_bytes(pages)
    cluster.start()
    with pytest.raises(RestoreError, match="message_pkey") as caught:
        look(cluster, tools)
    assert caught.value.code == "Corrupt"
