"""restic, rclone's crypt and pgBackRest as contestants: the same data, the same MinIO over TLS, encryption on.

restic and rclone know no database: they are given pg_basebackup's archive with its WAL in it, through zstd for rclone,
which does not compress. pgBackRest knows no files but the database's.
"""

from __future__ import annotations

import os
import secrets
import shlex
import subprocess
import sys
from pathlib import Path

from tests.backups.clusters import NOBODY
from tests.backups.contest.ground import ARCHIVE, PROGRAMS, Ground, plain
from tests.backups.contest.watch import Watch
from tests.cluster import tools

LIMIT = 1800.0
NAME = "base.tar"
PGBACKREST = Path("/usr/bin/pgbackrest")


class Rival:
    """One program in one round, in an empty place. `peak_mb` is of all of its processes."""

    name = ""
    parts: tuple[str, ...] = ("database", "media")
    settings_told = ""

    def __init__(self, ground: Ground, place: str) -> None:
        self.ground, self.place = ground, place
        self.bucket, name = place.split("/")
        self.folder = ground.folder / name
        self.folder.mkdir(mode=0o755)
        self.peak_mb = 0.0

    def begin(self) -> None:
        """Do what is done once for a place."""

    def backup(self, part: str) -> float:
        """Back a part up for the first time; return the seconds."""
        return self._timed(self.backing_up(part))

    def unchanged(self, part: str) -> float:
        """Back it up again."""
        return self._timed(self.backing_up(part))

    def restore(self, part: str, target: Path) -> float:
        """Bring a part back into a folder of its own, as files on the disk."""
        target.mkdir(mode=0o700)
        if part == "database":
            os.chown(target, NOBODY or -1, NOBODY or -1)
        return self._timed(f"{self.restoring(part, target)} && sync -f {shlex.quote(str(target))}")

    def end(self) -> None:
        """Let everybody else go on."""

    def backing_up(self, part: str) -> str:
        raise NotImplementedError

    def restoring(self, part: str, target: Path) -> str:
        raise NotImplementedError

    def environment(self) -> dict[str, str]:
        return plain()

    def _timed(self, script: str) -> float:
        with Watch(lambda: process.pid) as watch:
            argv = ["/bin/bash", "-e", "-o", "pipefail", "-c", script]
            process = subprocess.Popen(argv, env=self.environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
            told, _ = process.communicate(timeout=LIMIT)
        if process.returncode != 0:
            raise RuntimeError(f"{self.name}: {script}\n{told[-2000:].decode(errors='replace')}")
        self.peak_mb = max(self.peak_mb, watch.peak_mb)
        return watch.seconds

    def run(self, script: str) -> None:
        """Run something that nobody times."""
        self._timed(script)

    @staticmethod
    def unpack(target: Path) -> str:
        return shlex.join(_nobodys(Path("/bin/tar"), "-x", "-C", target))


class Restic(Rival):
    name = "restic"
    settings_told = "its defaults: zstd, AES-CTR with Poly1305"

    def begin(self) -> None:
        self._words = f"{tools.find('restic')} --quiet --cacert {self.ground.minio.trust}"
        self.run(f"{self._words} init")

    def backing_up(self, part: str) -> str:
        if part == "media":
            return f"{self._words} backup --tag media {self.ground.media}"
        words = f"--tag database --stdin-filename {NAME} --stdin-from-command"
        return f"{self._words} backup {words} -- {base_backup(self.ground)}"

    def restoring(self, part: str, target: Path) -> str:
        if part == "media":
            return f"{self._words} restore latest --tag media --target {target}"
        return f"{self._words} dump --tag database latest {NAME} | {self.unpack(target)}"

    def environment(self) -> dict[str, str]:
        it = self.ground.minio
        return plain(
            RESTIC_REPOSITORY=f"s3:{it.endpoint}/{self.place}",
            RESTIC_PASSWORD="bench",
            RESTIC_CACHE_DIR=str(self.folder / "cache"),
            AWS_ACCESS_KEY_ID=it.key_id,
            AWS_SECRET_ACCESS_KEY=it.secret,
        )


class Rclone(Rival):
    name = "rclone"
    settings_told = "crypt (XSalsa20-Poly1305), 8 transfers, zstd -1 -T2 before it for the database alone"

    def begin(self) -> None:
        program = Path(sys.executable).with_name("rclone")
        hidden = subprocess.run([program, "obscure", "bench"], capture_output=True, check=True, text=True).stdout
        self._hidden = hidden.strip()
        self._words = f"{program} --quiet --config /dev/null --ca-cert {self.ground.minio.trust} --transfers 8"

    def backing_up(self, part: str) -> str:
        if part == "media":
            return f"{self._words} copy {self.ground.media} C:media"
        return f"{base_backup(self.ground)} | zstd -q -1 -T2 | {self._words} rcat C:{NAME}"

    def restoring(self, part: str, target: Path) -> str:
        if part == "media":
            return f"{self._words} copy C:media {target}"
        return f"{self._words} cat C:{NAME} | zstd -q -d | {self.unpack(target)}"

    def environment(self) -> dict[str, str]:
        it = self.ground.minio
        return plain(
            RCLONE_CONFIG_S_TYPE="s3",
            RCLONE_CONFIG_S_PROVIDER="Minio",
            RCLONE_CONFIG_S_ENDPOINT=it.endpoint,
            RCLONE_CONFIG_S_ACCESS_KEY_ID=it.key_id,
            RCLONE_CONFIG_S_SECRET_ACCESS_KEY=it.secret,
            RCLONE_CONFIG_C_TYPE="crypt",
            RCLONE_CONFIG_C_REMOTE=f"S:{self.place}",
            RCLONE_CONFIG_C_PASSWORD=self._hidden,
        )


class PgBackRest(Rival):
    name = "pgbackrest"
    parts = ("database",)
    settings_told = "zst at level 1, AES-256-CBC, process-max 2, bundles"

    def begin(self) -> None:
        program, it, cluster = PGBACKREST, self.ground.minio, self.ground.cluster
        own = self.folder / "own"
        own.mkdir()
        os.chown(own, NOBODY or -1, NOBODY or -1)
        values = {
            "repo1-type": "s3",
            "repo1-path": f"/{self.folder.name}",
            "repo1-s3-bucket": self.bucket,
            "repo1-s3-endpoint": "localhost",
            "repo1-s3-region": "us-east-1",
            "repo1-s3-uri-style": "path",
            "repo1-s3-key": it.key_id,
            "repo1-s3-key-secret": it.secret,
            "repo1-storage-port": it.port,
            "repo1-storage-ca-file": it.trust,
            "repo1-cipher-type": "aes-256-cbc",
            "repo1-cipher-pass": secrets.token_urlsafe(32),
            "repo1-bundle": "y",
            "repo1-retention-full": 2,
            "compress-type": "zst",
            "compress-level": 1,
            "process-max": 2,
            "start-fast": "y",
            "log-level-console": "warn",
            "log-level-file": "off",
            "lock-path": own,
            "spool-path": own,
        }
        lines = ["[global]", *(f"{name}={value}" for name, value in values.items()), "[main]"]
        lines += [f"pg1-path={cluster.data}", f"pg1-socket-path={cluster.folder}", "pg1-user=postgres"]
        config = self.folder / "pgbackrest.conf"
        config.write_text("\n".join(lines) + "\n")
        self._words = shlex.join(_nobodys(program, f"--config={config}", "--stanza=main"))
        push = f"exec {program} --config={config} --stanza=main archive-push"
        (cluster.folder / ARCHIVE).write_text(f'{push} "$1"\n')
        self.run(f"{self._words} stanza-create")

    def end(self) -> None:
        (self.ground.cluster.folder / ARCHIVE).write_text("exit 0\n")

    def backing_up(self, part: str) -> str:
        assert part == "database"
        return f"{self._words} --type=full backup"

    def unchanged(self, part: str) -> float:
        assert part == "database"
        return self._timed(f"{self._words} --type=incr backup")

    def restoring(self, part: str, target: Path) -> str:
        assert part == "database"
        return f"{self._words} --pg1-path={target} restore"


def base_backup(ground: Ground) -> str:
    """What gives the database as one archive, with the WAL that it needs."""
    words = _nobodys(PROGRAMS / "pg_basebackup", "-h", ground.cluster.folder, "-U", "postgres")
    return shlex.join([*words, "-D", "-", "-Ft", "-X", "fetch", "--checkpoint=fast"])


def _nobodys(program: Path, *words: object) -> list[str]:
    """Words of a shell's line that runs a program as the database's user."""
    drop = [] if NOBODY is None else ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--"]
    return [*drop, str(program), *map(str, words)]


RIVALS: tuple[type[Rival], ...] = (Restic, Rclone, PgBackRest)
