"""How long a homeserver with 5 GB and an hour of write-ahead log takes to be back, and what part of it nobody can save.

It is a real Synapse of the agent's; what fills its PostgreSQL is pgbench's. An hour of log is a segment of 16 MiB each
minute: pgbench at full speed until there are sixty. From the request on: all is restored beside it, the old server is
stopped, the data take their place, it starts, and the protocol checks pass. The floor is measured after it, on the
same backup: reading and decrypting every object that the restore needs, one after the other, and then replay alone,
with all of the log laid out beside it as plain files and `cp` as the restore_command.

    python -m tests.bench.rto [gigabytes [segments]]        (5 and 60)
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import zstandard

from backups.engine.catalogue import Catalogue
from backups.engine.database import lsn
from backups.engine.names import SEGMENT_SIZE
from backups.engine.objects import Vault
from provisioning import checks
from provisioning.matrix import SERVICE
from provisioning.matrix import Homeserver as Client
from provisioning.providers.local import environments
from provisioning.providers.local.paths import runtime_dir
from provisioning.providers.local.postgres import BIN
from tenants.releases import newest
from tests.backups.clusters import Cluster, run
from tests.backups.engine.conftest import ORGANISATION, SERVER
from tests.backups.recovery import Restorer
from tests.backups.restore.synapse import Backed
from tests.local.conftest import ENVIRONMENTS, Agent, Homeserver, quiet

SCALE_OF_A_GIGABYTE = 67
"""pgbench's: a branch has 100,000 accounts, some 15 MB."""
COUNT = "SELECT count(*) FROM pgbench_history"
BURST = 20
"""Seconds of pgbench at once."""
REPLAY_LIMIT = 1800.0


def main(gigabytes: float = 5, segments: int = 60) -> int:
    """Make, back up, restore, measure the floor, print one line of JSON."""
    folder = Path(tempfile.mkdtemp(prefix="hb-", dir="/tmp"))
    folder.chmod(0o755)
    with _homeserver() as homeserver:
        server = Backed(folder, homeserver)
        try:
            expected = _fill(server, gigabytes, segments)
            print(json.dumps(_measure(server, expected)), flush=True)  # noqa: T201 (this is a command)
        finally:
            server.stop()
            for each in server.living:
                each.stop()
            shutil.rmtree(folder)
    return 0


@contextlib.contextmanager
def _homeserver() -> Iterator[Homeserver]:
    """Give a homeserver of an agent of its own, with the account that the checks sign in to."""
    cache = ENVIRONMENTS.with_name("cache")
    asyncio.run(environments.ensure(ENVIRONMENTS, newest().version, progress=quiet, cache=cache))
    state = Path(tempfile.mkdtemp(prefix="hearth-local-", dir="/tmp"))
    state.chmod(0o711)
    agent = Agent(state)
    try:
        agent.start()
        homeserver = Homeserver(agent, "alice")
        homeserver.make()
        url = homeserver.start()
        secrets = homeserver.spec.secrets
        with Client(url, homeserver.spec.server_name) as client:
            client.register_admin(SERVICE, "a long enough password", secrets["registration"])
        yield homeserver
        homeserver.remove()
    finally:
        if agent.process is not None and agent.process.poll() is None:
            agent.end(signal.SIGTERM)
        shutil.rmtree(runtime_dir(state), ignore_errors=True)
        shutil.rmtree(state)


def _fill(server: Backed, gigabytes: float, segments: int) -> int:
    cluster = server.cluster
    scale = max(round(gigabytes * SCALE_OF_A_GIGABYTE), 1)
    _pgbench(server, "-q", "-i", "-s", str(scale))
    server.start()
    begin = lsn.number(server.point().begin)
    while lsn.number(cluster.value("SELECT pg_current_wal_lsn()::text")) < begin + segments * SEGMENT_SIZE:
        _pgbench(server, "-c", "4", "-T", str(BURST), "-n")
    found = int(cluster.value(COUNT))
    server.covered()
    server.stop()
    return found


def _pgbench(server: Backed, *words: str) -> None:
    """Run pgbench in the homeserver's own database."""
    where = ("-h", str(server.cluster.folder), "-U", "postgres")
    environment = {**os.environ, "PGPASSWORD": server.cluster.unit.superuser_password}
    subprocess.run([str(BIN / "pgbench"), *where, *words, "synapse"], env=environment, check=True, capture_output=True)


def _measure(server: Backed, expected: int) -> dict[str, Any]:
    moment = Catalogue.read(server.store, ORGANISATION, SERVER).windows()[-1].end
    spec = server.homeserver.spec
    began = time.monotonic()
    found = server.back_to(moment)
    switched = time.monotonic()
    checks.run(server.homeserver.seen().homeserver_url, spec.server_name, spec.secrets)
    seconds = time.monotonic() - began
    counted = server.cluster.value(COUNT)
    assert counted == expected, f"{counted} rows came back of {expected}"
    server.homeserver.stop()
    floor = _floor(server)
    need = Catalogue.read(server.store, ORGANISATION, SERVER).need(to=moment)
    return {
        "restore_s": round(seconds, 1),
        "over_floor": round(seconds / sum(floor.values()), 2),
        "load": round(os.getloadavg()[1], 1),
        **{f"floor_{name}_s": round(value, 1) for name, value in floor.items()},
        **{f"{name}_s": value for name, value in found["seconds"].items()},
        "switch_s": round(switched - began - found["seconds"]["all"], 1),
        "checks_s": round(began + seconds - switched, 1),
        "database_mb": need.point.database_bytes // 10**6,
        "wal_mb": len(need.wal) * SEGMENT_SIZE // 10**6,
    }


def _floor(server: Backed) -> dict[str, float]:
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
    _replayed(target)
    replaying = time.monotonic() - began
    target.stop()
    return {"read": reading, "replay": replaying}


def _replayed(target: Cluster) -> None:
    """Start it, and wait until it has replayed all of its log: an hour's, perhaps on a machine that has much to do."""
    target.start(wait=False)
    end = time.monotonic() + REPLAY_LIMIT
    while time.monotonic() < end:
        with contextlib.suppress(psycopg.OperationalError):
            if not target.value("SELECT pg_is_in_recovery()"):
                return
        time.sleep(0.05)
    raise RuntimeError(f"The log was not replayed: {target.log()}")


def _lay_out(server: Backed, vault: Vault, target: Cluster) -> None:
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
    (target.data / "pg_hba.conf").write_text("local all all trust\n")  # the homeserver's asks for passwords
    (target.data / "postgresql.auto.conf").write_text(f"restore_command = 'cp {wal}/%f %p'\n")
    target.own(target.folder)


if __name__ == "__main__":
    sys.exit(main(*(float(sys.argv[1]), int(sys.argv[2])) if sys.argv[2:] else ()))
