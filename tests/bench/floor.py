"""The floor under "a server is ready": the same PostgreSQL and Synapse, brought up by a bare script without Hearth.

initdb, start, create role and database, a minimal configuration, start Synapse, wait until it answers
`/_matrix/client/versions`: each after the other, as an administrator's script would.
"""

from __future__ import annotations

import base64
import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx

UNPRIVILEGED = 65534  # PostgreSQL refuses to run as root

CONFIGURATION = """
server_name: floor.localhost
public_baseurl: http://localhost:{port}/
report_stats: false
trusted_key_servers: []
enable_metrics: true
pid_file: {folder}/synapse.pid
signing_key_path: {folder}/signing.key
media_store_path: {folder}/media
macaroon_secret_key: {secret}
registration_shared_secret: {secret}
listeners:
  - {{port: {port}, type: http, bind_addresses: [127.0.0.1], resources: [{{names: [client, federation]}}]}}
  - {{port: {metrics}, type: metrics, bind_addresses: [127.0.0.1]}}
database: {{name: psycopg2, args: {{user: synapse, database: synapse, host: {folder}/socket, cp_min: 5, cp_max: 10}}}}
"""


def free_ports(count: int) -> list[int]:
    """Return that many loopback ports nobody listens on."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def bring_up(postgres_bin: Path, synapse_python: Path) -> float:
    """Bring one server up and down again; return the seconds until it answered."""
    with _folder() as folder, contextlib.ExitStack() as stack:
        port, metrics = free_ports(2)
        started = time.perf_counter()
        data = folder / "data"
        _run(postgres_bin / "initdb", "-D", data, "-U", "synapse", "-A", "trust", "--locale=C", "--encoding=UTF8")
        _start_postgres(stack, postgres_bin, folder)
        options = ["-h", str(folder / "socket"), "-U", "synapse"]
        _run(postgres_bin / "createdb", *options, "--locale=C", "--encoding=UTF8", "--template=template0", "synapse")
        configuration = folder / "homeserver.yaml"
        configuration.write_text(
            CONFIGURATION.format(port=port, metrics=metrics, folder=folder, secret=secrets.token_hex(32))
        )
        _start_synapse(stack, synapse_python, folder)
        _wait_for(f"http://127.0.0.1:{port}/_matrix/client/versions")
        return time.perf_counter() - started


def _start_postgres(stack: contextlib.ExitStack, postgres_bin: Path, folder: Path) -> None:
    (folder / "socket").mkdir()
    if os.geteuid() == 0:
        os.chown(folder / "socket", UNPRIVILEGED, UNPRIVILEGED)
    stack.enter_context(
        _process(
            signal.SIGINT,
            *[postgres_bin / "postgres", "-D", folder / "data", "-k", folder / "socket", "-c", "listen_addresses="],
        )
    )
    # The socket is there a moment before the database takes anybody: its lock file says when.
    while "ready" not in _read(folder / "data" / "postmaster.pid"):
        time.sleep(0.01)


def _read(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def _start_synapse(stack: contextlib.ExitStack, python: Path, folder: Path) -> None:
    configuration = folder / "homeserver.yaml"
    seed = base64.b64encode(secrets.token_bytes(32)).decode().rstrip("=")
    (folder / "signing.key").write_text(
        f"ed25519 a_floor {seed}\n"
    )  # a run of --generate-keys would cost a second more
    stack.enter_context(_process(signal.SIGTERM, python, "-m", "synapse.app.homeserver", "-c", configuration))


def _wait_for(url: str) -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(url).status_code == 200:
                return
        time.sleep(0.02)
    raise TimeoutError(url)


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="floor-", dir="/tmp"))  # short: socket paths end at 107 bytes
    try:
        if os.geteuid() == 0:
            os.chown(folder, UNPRIVILEGED, UNPRIVILEGED)
        yield folder
    finally:
        shutil.rmtree(folder)


def _as_nobody(*words: object) -> list[str]:
    drop = (
        ["setpriv", f"--reuid={UNPRIVILEGED}", f"--regid={UNPRIVILEGED}", "--clear-groups"] if os.geteuid() == 0 else []
    )
    return [*drop, *map(str, words)]


def _run(*words: object) -> None:
    subprocess.run(_as_nobody(*words), check=True, capture_output=True, cwd="/tmp")


@contextlib.contextmanager
def _process(stop: int, *words: object) -> Iterator[None]:
    process = subprocess.Popen(
        _as_nobody(*words), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/tmp", start_new_session=True
    )
    try:
        yield
    finally:
        process.send_signal(stop)
        process.wait(timeout=30)
