"""How to reach the API server and who we are: from a kubeconfig, or from the pod's own service account.

Tokens and certificates are read again when their files change, and at once when the server says they have expired.
"""

from __future__ import annotations

import base64
import binascii
import os
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import yaml

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
LOOK_AGAIN = 10.0  # seconds between two looks at a file's time of change


class AccessError(Exception):
    """The credentials can't be used as they are. The text says what to do."""


@dataclass(frozen=True)
class Credentials:
    """One moment's credentials. `context` is None for plain http, as behind a test's proxy."""

    server: str
    context: ssl.SSLContext | None
    token: str = field(default="", repr=False)
    server_name: str = ""

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"} if self.token else {}


class Source(Protocol):
    """Where credentials come from."""

    def files(self) -> list[Path]:
        """Return the files whose change means new credentials."""

    def load(self) -> Credentials:
        """Read them."""


class Access:
    """The credentials to use now."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._stamp = self._times()
        self._looked = time.monotonic()
        self._now = source.load()

    def current(self) -> Credentials:
        """Return the credentials, read again if their files have changed since."""
        if time.monotonic() - self._looked >= LOOK_AGAIN:
            self.refresh()
        return self._now

    def refresh(self) -> bool:
        """Look at the files now; say whether there was something new. Half-written files leave the old in force."""
        self._looked = time.monotonic()
        if (stamp := self._times()) == self._stamp:
            return False
        try:
            self._now, self._stamp = self._source.load(), stamp
        except (AccessError, OSError, ssl.SSLError, yaml.YAMLError):
            return False
        return True

    def _times(self) -> list[tuple[int, int]]:
        # A mounted Secret is a link that is swapped: stat() follows it, and the inode changes.
        found = [path.stat() for path in self._source.files() if path.exists()]
        return [(each.st_mtime_ns, each.st_ino) for each in found]


class InCluster:
    """The service account that Kubernetes mounts into the operator's pod."""

    def __init__(self, folder: Path = ACCOUNT, environment: Mapping[str, str] = os.environ) -> None:
        self._folder = folder
        host, port = environment.get("KUBERNETES_SERVICE_HOST", ""), environment.get("KUBERNETES_SERVICE_PORT", "443")
        if not host or not (folder / "token").exists():
            raise AccessError(
                "There is no service account here, so this is no pod of a cluster. Give --kubeconfig or KUBECONFIG."
            )
        self._server = f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"

    def files(self) -> list[Path]:
        """Return the token and the authority."""
        return [self._folder / "token", self._folder / "ca.crt"]

    def load(self) -> Credentials:
        """Read them."""
        context = ssl.create_default_context(cafile=str(self._folder / "ca.crt"))
        return Credentials(self._server, context, (self._folder / "token").read_text(encoding="utf-8").strip())


class Kubeconfig:
    """A kubeconfig's current context, or the one that is named. Programs (`exec`) are not run: they need a shell."""

    def __init__(self, path: Path, context: str = "") -> None:
        self._path = path
        self._context = context
        self._files: list[Path] = [path]

    def files(self) -> list[Path]:
        """Return the kubeconfig and every file that it names."""
        return self._files

    def load(self) -> Credentials:
        """Read it."""
        whole = yaml.safe_load(self._path.read_text(encoding="utf-8")) or {}
        name = self._context or str(whole.get("current-context") or "")
        context = self._named(whole, "contexts", name, "context")
        cluster = self._named(whole, "clusters", str(context.get("cluster") or ""), "cluster")
        user = self._named(whole, "users", str(context.get("user") or ""), "user") if context.get("user") else {}
        if unknown := {"exec", "auth-provider", "username"} & user.keys():
            raise AccessError(
                f"{self._path}: signing in by {', '.join(sorted(unknown))} is not supported. "
                "Use a client certificate, a token or a token file."
            )
        self._files = [self._path]
        server = str(cluster.get("server") or "").rstrip("/")
        if not server:
            raise AccessError(f"{self._path}: the cluster of context {name!r} has no server.")
        return Credentials(
            server,
            self._tls(cluster, user) if server.startswith("https:") else None,
            self._token(user),
            str(cluster.get("tls-server-name") or ""),
        )

    def _named(self, whole: dict[str, Any], section: str, name: str, key: str) -> dict[str, Any]:
        for each in whole.get(section) or ():
            if each.get("name") == name:
                return dict(each.get(key) or {})
        raise AccessError(f"{self._path} has no {key} called {name!r}.")

    def _token(self, user: dict[str, Any]) -> str:
        if file := user.get("tokenFile"):
            return self._file(str(file)).read_text(encoding="utf-8").strip()
        return str(user.get("token") or "")

    def _tls(self, cluster: dict[str, Any], user: dict[str, Any]) -> ssl.SSLContext:
        if cluster.get("insecure-skip-tls-verify"):
            raise AccessError(f"{self._path}: insecure-skip-tls-verify is not supported. Give the cluster's authority.")
        authority = self._bytes(cluster, "certificate-authority")
        context = ssl.create_default_context(cadata=authority.decode() if authority else None)
        certificate, key = self._bytes(user, "client-certificate"), self._bytes(user, "client-key")
        if certificate and key:
            # The ssl module takes a client's key from a file only: from one that is in memory alone.
            descriptor = os.memfd_create("client", os.MFD_CLOEXEC)
            try:
                os.write(descriptor, certificate + b"\n" + key)
                context.load_cert_chain(f"/proc/self/fd/{descriptor}")
            finally:
                os.close(descriptor)
        return context

    def _bytes(self, section: dict[str, Any], name: str) -> bytes:
        if data := section.get(f"{name}-data"):
            try:
                return base64.b64decode(data, validate=True)
            except binascii.Error:
                raise AccessError(f"{self._path}: {name}-data is not base64.") from None
        if path := section.get(name):
            return self._file(str(path)).read_bytes()
        return b""

    def _file(self, name: str) -> Path:
        path = self._path.parent / name
        self._files.append(path)
        return path


def find(kubeconfig: str = "", environment: Mapping[str, str] = os.environ, *, account: Path = ACCOUNT) -> Access:
    """Return access by the named kubeconfig, else by KUBECONFIG, else by the pod's service account."""
    path = kubeconfig or environment.get("KUBECONFIG", "")
    try:
        return Access(Kubeconfig(Path(path)) if path else InCluster(account, environment))
    except (OSError, ssl.SSLError, yaml.YAMLError) as error:
        raise AccessError(f"The credentials in {path or account} can't be read: {error}") from error
