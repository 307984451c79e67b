"""How long a server with 5 GB and an hour of write-ahead log needs to be back, and what part of that nobody can save.

The database is pgbench's. An hour of log is a segment of 16 MiB each minute: pgbench at full speed until there are
sixty. Back is it when its PostgreSQL, started anew on what was restored, has counted all rows. The floor is measured
after it, on the same backup: reading and decrypting every object that the restore needs, one after the other, and then
replay alone, with all of the log laid out beside it as plain files and `cp` as the restore_command.

    python -m tests.bench.rto [gigabytes [segments]]        (5 and 60)
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import zstandard

from backups.engine.catalogue import Catalogue
from backups.engine.database import lsn
from backups.engine.names import SEGMENT_SIZE
from backups.engine.objects import Vault
from tests.backups.clusters import Cluster, run
from tests.backups.engine.conftest import ORGANISATION, SERVER
from tests.backups.recovery import Restorer
from tests.backups.restore.conftest import Server

SCALE_OF_A_GIGABYTE = 67
"""pgbench's: a branch has 100,000 accounts, some 15 MB."""
COUNT = "SELECT count(*) FROM pgbench_history"
BURST = 20
"""Seconds of pgbench at once."""


def main(gigabytes: float = 5, segments: int = 60) -> int:
    """Make, back up, restore, measure the floor, print one line of JSON."""
    folder = Path(tempfile.mkdtemp(prefix="hb-", dir="/tmp"))
    folder.chmod(0o755)
    server = Server(folder)
    try:
        server.cluster.settings |= {"max_wal_size": "2GB", "shared_buffers": "128MB"}
        server.cluster.make()
        expected = _fill(server, gigabytes, segments)
        print(json.dumps(_measure(server, expected)), flush=True)  # noqa: T201 (this is a command)
    finally:
        server.stop()
        for each in (server.cluster, *server.living):
            each.stop()
        shutil.rmtree(folder)
    return 0


def _fill(server: Server, gigabytes: float, segments: int) -> int:
    cluster = server.cluster
    scale = max(round(gigabytes * SCALE_OF_A_GIGABYTE), 1)
    run(cluster.folder, "pgbench", *cluster.where[:4], "-q", "-i", "-s", str(scale), "postgres")
    server.start()
    begin = lsn.number(server.point().begin)
    while lsn.number(cluster.value("SELECT pg_current_wal_lsn()::text")) < begin + segments * SEGMENT_SIZE:
        run(cluster.folder, "pgbench", *cluster.where[:4], "-c", "4", "-T", str(BURST), "-n", "postgres")
    found = int(cluster.value(COUNT))
    server.covered()
    server.stop()
    cluster.stop()
    return found


def _measure(server: Server, expected: int) -> dict[str, Any]:
    began = time.monotonic()
    found = server.restore(server.request())
    cluster = server.started(server.request())
    counted = cluster.value(COUNT)
    seconds = time.monotonic() - began
    cluster.stop()
    assert counted == expected, f"{counted} rows came back of {expected}"
    floor = _floor(server)
    need = Catalogue.read(server.store, ORGANISATION, SERVER).need()
    return {
        "restore_s": round(seconds, 1),
        "over_floor": round(seconds / sum(floor.values()), 2),
        **{f"floor_{name}_s": round(value, 1) for name, value in floor.items()},
        **{f"{name}_s": value for name, value in found["seconds"].items()},
        "database_mb": need.point.database_bytes // 10**6,
        "wal_mb": len(need.wal) * SEGMENT_SIZE // 10**6,
    }


def _floor(server: Server) -> dict[str, float]:
    """Return the seconds that reading and decrypting, unpacking and replaying take by themselves."""
    vault = Vault(store=server.store, organisation=ORGANISATION, server=SERVER)
    need = Catalogue.read(server.store, ORGANISATION, SERVER).need()
    began = time.monotonic()
    for _ in vault.read(need.point.base, server.keys.open):
        pass
    for piece in need.wal:
        for _ in vault.get(piece.name, server.keys.open, need.point.line):
            pass
    reading = time.monotonic() - began
    target = Cluster(server.folder / "f", {"max_wal_size": "2GB", "shared_buffers": "256MB"})
    server.living.append(target)
    _lay_out(server, vault, target)
    began = time.monotonic()
    target.start()
    replaying = time.monotonic() - began
    target.stop()
    return {"read": reading, "replay": replaying}


def _lay_out(server: Server, vault: Vault, target: Cluster) -> None:
    """Put base backup and log where PostgreSQL finds them."""
    need = Catalogue.read(server.store, ORGANISATION, SERVER).need()
    target.data.mkdir(mode=0o700)
    base, wal = target.folder / "base.tar", target.folder / "wal"
    with base.open("wb") as file:
        unpacker = zstandard.ZstdDecompressor().decompressobj()
        for piece in vault.read(need.point.base, server.keys.open):
            file.write(unpacker.decompress(bytes(piece)))
    target.own(target.folder)
    run(target.folder, "/bin/tar", "-xf", str(base), "-C", str(target.data))
    base.unlink()
    wal.mkdir()
    restorer = Restorer(server.store, ORGANISATION, SERVER, server.keys.open)
    for segment, data in restorer.segments(need.point.line).items():
        (wal / segment).write_bytes(data.ljust(SEGMENT_SIZE, b"\0"))
    (target.data / "recovery.signal").touch()
    (target.data / "postgresql.auto.conf").write_text(f"restore_command = 'cp {wal}/%f %p'\n")
    target.own(target.folder)


if __name__ == "__main__":
    sys.exit(main(*(float(sys.argv[1]), int(sys.argv[2])) if sys.argv[2:] else ()))
