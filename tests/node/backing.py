"""What backups on the real node need from elsewhere: a MinIO and an authority for internal calls; a look inside."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import secrets
import ssl
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

from backups.engine import names
from backups.engine.stores import buckets
from backups.engine.stores.connection import Bucket, Credentials
from backups.engine.stores.s3 import S3Store
from provisioning.providers.local.processes import Command, spawn_argv
from security.transport.certmanager import AUTHORITY, certificate
from security.transport.identities import Identity
from tests.cluster.api import Object
from tests.cluster.certificates import Authority
from tests.cluster.stand_ins import CERT_MANAGER
from tests.cluster.tools import find
from tests.lasting import Lasting

PORT = 9000
BUCKET = "hearth-backups"
DAYS = 30


class Backing(Lasting):
    """All of it, at one address of the node's network."""

    def __init__(self, folder: Path, address: str) -> None:
        self._folder = folder / "backing"
        self._address = address
        self._authority = Authority("Hearth internal authority", days=DAYS)
        self._store_authority = Authority("The store's own authority", days=DAYS)
        self.key, self.secret = "hearth", secrets.token_urlsafe(24)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        return f"https://{self._address}:{PORT}"

    @property
    def authority(self) -> str:
        """Who vouches for the store, PEM."""
        return self._store_authority.certificate.decode()

    @property
    def trust(self) -> Path:
        """A file with that."""
        return self._folder / "store-ca.crt"

    def start(self) -> None:
        """Start MinIO and make the bucket as Hearth's own verb does."""
        data = self._folder / "data"
        data.mkdir(parents=True)
        self.trust.write_text(self.authority)
        self._certify()
        options = ("--address", f"{self._address}:{PORT}", "--certs-dir", str(self._folder / "certs"), "--quiet")
        words = (str(find("minio")), "server", str(data), *options)
        environment = {"MINIO_ROOT_USER": self.key, "MINIO_ROOT_PASSWORD": self.secret, "MINIO_BROWSER": "off"}
        environment |= {"MINIO_UPDATE": "off", "HOME": str(self._folder), "PATH": os.defpath}
        with (self._folder / "log").open("ab") as log:
            argv = spawn_argv(Command("minio", words, self._folder, {}))
            self._process = subprocess.Popen(argv, env=environment, cwd=self._folder, stdout=log, stderr=log)
        end = time.monotonic() + 120
        while not self._answers():
            assert self._process.poll() is None, (self._folder / "log").read_text()[-2000:]
            assert time.monotonic() < end, "MinIO does not answer"
            time.sleep(0.05)
        buckets.prepare(self._where(""), "minio", lock_days=None)

    def _certify(self) -> None:
        pair = self._store_authority.issue("minio", hosts=(self._address,))
        (self._folder / "certs").mkdir()
        for name, content in {"public.crt": pair.certificate, "private.key": pair.key}.items():
            (self._folder / "certs" / name).write_bytes(content)

    def stop(self) -> None:
        """End it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def settings(self) -> dict[str, str]:
        """Return Hearth's settings for an internal listener whose certificates cert-manager makes."""
        self._folder.mkdir(exist_ok=True)
        wanted = certificate(Identity("hearth", "listener"), "hearth", "listener", hosts=[self._address, "127.0.0.1"])
        pair = self._authority.sign(wanted["spec"], days=DAYS)
        files = {"CERTIFICATE": pair.certificate, "KEY": pair.key, "TRUST": self._authority.certificate}
        found = {"HEARTH_INTERNAL_HOST": self._address, "SSL_CERT_FILE": str(self.trust)}
        for name, content in files.items():
            place = self._folder / f"{name.lower()}.pem"
            place.touch(mode=0o600)
            place.write_bytes(content)
            found[f"HEARTH_INTERNAL_{name}"] = str(place)
        return found

    def issuer(self) -> list[Object]:
        """Return the ClusterIssuer that signs for agents, with what it signs by."""
        pair = self._authority.pair
        data = {"tls.crt": pair.certificate, "tls.key": pair.key}
        return [
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": CERT_MANAGER}},
            {
                "apiVersion": "v1",
                "kind": "Secret",
                "type": "kubernetes.io/tls",
                "metadata": {"name": AUTHORITY, "namespace": CERT_MANAGER},
                "data": {name: base64.b64encode(content).decode() for name, content in data.items()},
            },
            {
                "apiVersion": "cert-manager.io/v1",
                "kind": "ClusterIssuer",
                "metadata": {"name": AUTHORITY},
                "spec": {"ca": {"secretName": AUTHORITY}},
            },
        ]

    def points(self, server: str) -> list[dict[str, Any]]:
        """Return the manifests of a server's restore points, which need no key, in the order of their making."""
        with self._store(server) as store:
            found = [each.name for each in store.listing(names.POINTS)]
            return [json.loads(b"".join(store.get(name))) for name in sorted(found)]

    def count(self, server: str, prefix: str) -> int:
        """Return how many objects lie below a prefix."""
        with self._store(server) as store:
            return sum(1 for _each in store.listing(prefix))

    @contextlib.contextmanager
    def _store(self, server: str) -> Iterator[S3Store]:
        with contextlib.closing(S3Store("minio", self._where(server))) as store:
            yield store

    def _where(self, prefix: str) -> Bucket:
        known = Credentials(self.key, self.secret)
        return Bucket(BUCKET, self.endpoint, prefix=prefix, credentials=known, trust=self.trust)

    def _answers(self) -> bool:
        try:
            context = ssl.create_default_context(cafile=str(self.trust))
            return httpx.get(f"{self.endpoint}/minio/health/live", verify=context, timeout=5).status_code == 200
        except httpx.HTTPError:
            return False
