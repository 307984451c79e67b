"""What all contestants of `make bench BENCH=backup` stand on: Debian's PostgreSQL 15, media, and one MinIO with TLS."""

from __future__ import annotations

import os
import random
import signal
import ssl
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

import httpx

from backups.engine.stores import buckets
from backups.engine.stores.connection import Bucket, Credentials
from provisioning.providers.local.processes import Command, spawn_argv
from tests.backups.clusters import NOBODY, ROLE, Cluster
from tests.backups.engine.media import Files
from tests.backups.s3_servers import S3Server
from tests.tls import Authority

PROGRAMS = Path("/usr/lib/postgresql/15/bin")
LARGE = 4 << 20
"""Bytes of one of the large media files."""
SMALL_FILES = 2000
ARCHIVE = "pgbackrest-or-none"
"""pgBackRest wants its name in the archive_command."""
PREPARING = 600.0
COUNT = "SELECT count(*) || '/' || sum(abalance + aid) FROM pgbench_accounts"


class Missing(Exception):
    """A program that the measurement needs is not there. The text says what to do."""


class Minio(S3Server):
    """MinIO with TLS: pgBackRest speaks nothing else, so everybody does."""

    def __init__(self, folder: Path) -> None:
        certificates = folder / "certificates"
        certificates.mkdir(parents=True)
        authority = Authority(certificates, "store")
        pair = authority.issue("store.server")
        self.trust = authority.file
        self.trust.chmod(0o644)
        self._pairs = folder / "pairs"
        self._pairs.mkdir()
        pair.certificate.rename(self._pairs / "public.crt")
        pair.key.rename(self._pairs / "private.key")
        super().__init__("minio", folder)

    @property
    def endpoint(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    def where(self, bucket: str, *, prefix: str = "", tries: int = 3) -> Bucket:
        known = Credentials(self.key_id, self.secret)
        return Bucket(bucket, self.endpoint, prefix=prefix, credentials=known, tries=tries, trust=self.trust)

    def bucket(self, name: str) -> str:
        """Make a bucket as Hearth makes them."""
        buckets.prepare(self.where(name), self.kind, lock_days=None)
        return name

    def _command(self) -> tuple[list[str], Mapping[str, str]]:
        argv, environment = super()._command()
        return [*argv, "--certs-dir", str(self._pairs)], environment

    def _answers(self) -> bool:
        assert self.process
        end = time.monotonic() + 60
        with httpx.Client(timeout=5, verify=ssl.create_default_context(cafile=str(self.trust))) as client:
            while self.process.poll() is None and time.monotonic() < end:
                try:
                    return client.get(f"{self.endpoint}/minio/health/live").status_code < 500
                except httpx.HTTPError:
                    time.sleep(0.05)
        return False


class Fifteen(Cluster):
    """Debian's PostgreSQL 15. Its archive_command is a file of its folder, so that it may change."""

    def __init__(self, folder: Path, settings: Mapping[str, str] | None = None) -> None:
        super().__init__(folder, {"shared_buffers": "128MB", "max_wal_size": "2GB", **(settings or {})})
        del self.settings["io_method"]  # younger than 15

    def make(self, template: Path | None = None) -> Fifteen:
        assert template is None
        self.settings |= {"archive_mode": "on", "archive_command": f"/bin/sh {self.folder}/{ARCHIVE} %p"}
        (self.folder / ARCHIVE).write_text("exit 0\n")
        tool("initdb", "-D", self.data, "-U", "postgres", "-A", "trust", "--no-sync", "--locale=C", "--encoding=UTF8")
        self.start()
        tool("psql", *self.where, "-X", "-q", "-f", ROLE, BACKUP_PASSWORD="secret")
        return self

    def start(self, *, wait: bool = True) -> None:
        options = [f"--{key}={value}" for key, value in self.settings.items()]
        with (self.folder / "log").open("ab") as log:
            argv = as_nobody(PROGRAMS / "postgres", "-D", self.data, *options, death=signal.SIGQUIT)
            self.process = subprocess.Popen(argv, env=plain(), stderr=log, cwd="/")
        end = time.monotonic() + PREPARING
        while wait:
            if subprocess.run(self._asking(), env=plain(), capture_output=True, check=False).stdout.strip() == b"f":
                return
            if self.process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(self.log())
            time.sleep(0.02)

    def _asking(self) -> list[str]:
        words = ("-X", "-A", "-t", "-c", "SELECT pg_is_in_recovery()")
        return [str(PROGRAMS / "psql"), *self.where, *words]


class Ground:
    """A database and media to back up, and where to."""

    def __init__(self, folder: Path, scale: float) -> None:
        self.folder = folder
        self.scale = scale
        self.cluster = Fifteen(folder / "a")
        self.media = folder / "media"
        self.minio = Minio(folder / "minio")
        self.password = folder / "password"

    def make(self) -> None:
        """Start everything and fill it. Raises `Missing`."""
        if not (PROGRAMS / "postgres").exists():
            raise Missing("Debian's PostgreSQL 15 is not there: apt-get install postgresql-15. Nothing was measured.")
        self.password.write_text("secret\n")
        self.minio.start()
        self.cluster.make()
        branches = max(round(100 * self.scale), 1)
        tool("pgbench", *self.cluster.where[:4], "-q", "-i", "-s", str(branches), "postgres")
        self.cluster.value("CHECKPOINT")
        self._fill_media()

    def close(self) -> None:
        self.cluster.stop()
        self.minio.stop()

    def count(self) -> str:
        """What the database holds, in one value."""
        return str(self.cluster.value(COUNT))

    def _fill_media(self) -> None:
        files, dice = Files(self.media), random.Random(1)
        for _ in range(max(round(256 * self.scale), 1)):
            files.add(os.urandom(LARGE))
        for _ in range(max(round(SMALL_FILES * self.scale), 1)):
            files.add(dice.randbytes(dice.randrange(1000, 40_000)))
        files.age()


def plain(**more: str) -> dict[str, str]:
    """An environment that says nothing of this process's own."""
    return {"PATH": "/usr/bin:/bin:/usr/sbin:/sbin", "LC_ALL": "C", "HOME": "/nonexistent", **more}


def as_nobody(program: Path, *words: object, death: int = signal.SIGKILL) -> list[str]:
    """A command line that runs as the database's user and ends with this process."""
    argv = (str(program), *map(str, words))
    return spawn_argv(Command(program.name, argv, Path("/"), {}, uid=NOBODY, gid=NOBODY, death_signal=death))


def tool(name: str, *words: object, **variables: str) -> None:
    """Run one of PostgreSQL's programs as the database's user."""
    argv = as_nobody(PROGRAMS / name, *words)
    done = subprocess.run(argv, env=plain(**variables), cwd="/", capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{name}: {done.stderr[-2000:]}")
