"""Real S3 servers on loopback that share no code: MinIO, which does the most, and rclone's, which does the least.

`make test` builds MinIO from its Go module; rclone comes in a wheel. Each has an administrator's key of its
own, made for the run. A server is a child that gets SIGKILL when its parent dies; its data lie in a folder of the run.
"""

from __future__ import annotations

import base64
import contextlib
import os
import secrets
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import pytest

from backups.engine.stores import buckets
from backups.engine.stores.connection import Bucket, Credentials
from backups.engine.stores.s3 import S3Store
from provisioning.providers.local.processes import Command, spawn_argv
from tests.bench.floor import free_ports
from tests.cluster import tools
from tests.lasting import Lasting
from tests.left_out import leave_out

_TRIES = 5
_LIMIT = 60.0
"""Seconds; one on a quiet machine."""


@dataclass
class S3Server(Lasting):
    """One server. `start` returns when it answers; it may be stopped and started again over the same data."""

    kind: str
    folder: Path
    port: int = 0
    process: subprocess.Popen[bytes] | None = None

    def __post_init__(self) -> None:
        self.key_id, self.secret = f"admin{secrets.token_hex(4)}", secrets.token_urlsafe(24)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._shared: Bucket | None = None
        self._program = str(
            Path(sys.executable).with_name("rclone") if self.kind == "rclone" else tools.find(self.kind)
        )
        self._key = base64.b64encode(os.urandom(32)).decode()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        for _ in range(_TRIES):  # somebody may take the port between our look and the server's
            if not self.port:
                self.port = free_ports(1)[0]
            argv, environment = self._command()
            command = Command(self.kind, tuple(argv), self.folder, {})
            log = (self.folder / "log").open("ab")
            with log:
                self.process = subprocess.Popen(
                    spawn_argv(command), env=os.environ | environment, cwd=self.folder, stdout=log, stderr=log
                )
            if self._answers():
                return
            self.stop()
            self.port = 0
        raise RuntimeError(f"{self.kind} does not start:\n{(self.folder / 'log').read_text()[-2000:]}")

    def stop(self) -> None:
        """End it as a crash would."""
        if self.process:
            self.process.kill()
            self.process.wait()
            self.process = None

    def where(self, bucket: str, *, prefix: str = "", tries: int = 3) -> Bucket:
        """Return a bucket's address as the administrator."""
        known = Credentials(self.key_id, self.secret)
        return Bucket(bucket, self.endpoint, prefix=prefix, credentials=known, tries=tries, seconds=20)

    def new_prefix(self) -> Bucket:
        """Return the address of an empty place in the run's own bucket, which costs nothing to make."""
        if self._shared is None:
            self._shared = self.new_bucket()
        return replace(self._shared, prefix=f"region/{uuid.uuid4().hex}", endpoint=self.endpoint)

    def new_bucket(self) -> Bucket:
        """Make a bucket as Hearth makes them, and return its address."""
        where = self.where(f"test-{uuid.uuid4().hex[:12]}")
        buckets.prepare(where, self.kind, lock_days=None)
        return where

    def _command(self) -> tuple[list[str], Mapping[str, str]]:
        data = self.folder / "data"
        data.mkdir(exist_ok=True)
        address = f"127.0.0.1:{self.port}"
        if self.kind == "minio":
            environment = {
                "MINIO_ROOT_USER": self.key_id,
                "MINIO_ROOT_PASSWORD": self.secret,
                "MINIO_KMS_SECRET_KEY": f"hearth-test:{self._key}",
                "MINIO_BROWSER": "off",
                "MINIO_UPDATE": "off",
            }
            return [self._program, "server", str(data), "--address", address, "--quiet"], environment
        options = ["--addr", address, "--vfs-cache-mode", "off", "--config", "/dev/null"]
        known = {"RCLONE_AUTH_KEY": f'"{self.key_id},{self.secret}"'}
        return [self._program, "serve", "s3", *options, str(data)], known

    def _answers(self) -> bool:
        assert self.process
        end = time.monotonic() + _LIMIT
        with httpx.Client(timeout=5) as client:
            while self.process.poll() is None and time.monotonic() < end:
                with contextlib.suppress(httpx.HTTPError):
                    if client.get(f"{self.endpoint}/").status_code < 500:
                        return True
                time.sleep(0.05)
        return False


def started(kind: str, folder: Path) -> Iterator[S3Server]:
    """Start a server for the run, or leave the test out where it can't be had."""
    if kind != "rclone":
        try:
            tools.find(kind)
        except tools.Missing as missing:
            leave_out(str(missing))
    with S3Server(kind, folder) as server:
        yield server


def open_store(where: Bucket, **options: object) -> S3Store:
    """Return a store of that bucket, with some of its address changed."""
    return S3Store("far", replace(where, **options))  # type: ignore[arg-type]  # whatever fields a test changes


@pytest.fixture(scope="session")
def minio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """MinIO for the whole run."""
    yield from started("minio", tmp_path_factory.mktemp("minio"))


@pytest.fixture(scope="session")
def plain_s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """rclone's server for the whole run: it has no versions, refuses no taken name, and knows no rules."""
    yield from started("rclone", tmp_path_factory.mktemp("rclone"))


@pytest.fixture(scope="session", params=["minio", "plain_s3"])
def s3_server(request: pytest.FixtureRequest) -> S3Server:
    """Each of the two."""
    server: S3Server = request.getfixturevalue(request.param)
    return server
