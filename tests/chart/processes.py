"""Runs what the chart renders: each pod a process on this machine, with real Synapse, PostgreSQL, Redis and S3.

The rendered configuration is used as it is but for addresses: pods become unix sockets in a folder, volumes become
folders (`placed`). Each process is started by the chart's own start.py.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

import httpx
import psycopg
import yaml
from psycopg import sql

from provisioning.providers.local import environments
from provisioning.providers.local.keys import new_signing_key, verify_key
from provisioning.providers.local.processes import Command, spawn_argv
from tenants.releases import newest
from tests.bench.floor import free_ports
from tests.chart.render import Rendered
from tests.chart.s3 import TESTS, s3_provider
from tests.services import REDIS

SECRETS = "/etc/synapse-secrets"
ACCESS, SECRET = "media", "only-for-tests"


def environment(version: str) -> Path:
    """Return the Python of a Synapse release, installed first if need be."""
    folder = TESTS / "environments"
    made = environments.ensure(folder, version, progress=lambda _: None, cache=TESTS / "cache")
    return asyncio.run(made) / "bin" / "python"


def new_secret() -> dict[str, str]:
    """Return what Hearth's Secret of a server holds."""
    redis = secrets.token_urlsafe(24)
    return {
        "signing.key": new_signing_key() + "\n",
        **{name: secrets.token_urlsafe(24) for name in ("macaroon", "registration", "form", "replication")},
        "username": "synapse",
        "password": secrets.token_urlsafe(24),
        "redis": redis,
        "redis.conf": f"requirepass {redis}\n",
        "s3-credentials": f"[default]\naws_access_key_id = {ACCESS}\naws_secret_access_key = {SECRET}\n",
        "extra.yaml": yaml.safe_dump({"jwt_config": {"enabled": True, "secret": "j" * 32, "algorithm": "HS256"}}),
    }


def placed(
    name: str, content: Mapping[str, Any], pod: str, folder: Path, database: Mapping[str, Any]
) -> dict[str, Any]:
    """Return one rendered file of pod `pod` with the addresses of this machine; all else stays as it is."""
    changed = dict(content)
    listeners = "worker_listeners" if name != "homeserver.yaml" else "listeners"
    changed[listeners] = [_listener(each, folder / pod) for each in content[listeners]]
    if name != "homeserver.yaml":
        return changed | {"worker_log_config": str(folder / "log.yaml")}
    args = {key: value for key, value in content["database"]["args"].items() if not key.startswith("ssl")}
    changed["database"] = {"name": "psycopg2", "args": args | dict(database) | {"cp_max": 4}}
    for key in [key for key, value in content.items() if str(value).startswith(SECRETS)]:
        changed[key] = content[key].replace(SECRETS, str(folder / "secrets"))
    changed |= {"log_config": str(folder / "log.yaml"), "media_store_path": str(folder / pod / "media")}
    if "redis" in content:
        changed["redis"] = {
            "enabled": True,
            "path": str(folder / "redis.sock"),
            "password_path": content["redis"]["password_path"].replace(SECRETS, str(folder / "secrets")),
        }
        # `main` is the pod synapse-main-0; every other name is its pod's.
        pods = {each: f"synapse-{each}-0" if each == "main" else each for each in content["instance_map"]}
        changed["instance_map"] = {each: {"path": str(folder / pod / "9093.sock")} for each, pod in pods.items()}
    return changed


def _listener(listener: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    if listener["type"] == "metrics":
        return {**listener, "port": free_ports(1)[0], "bind_addresses": ["127.0.0.1"]}
    rest = {key: value for key, value in listener.items() if key not in ("port", "x_forwarded")}
    return {**rest, "path": str(folder / f"{listener['port']}.sock")}


class Fleet:
    """The processes of one rendered server. `secret` may be changed before `start`."""

    def __init__(self, rendered: Rendered, database: str, version: str | None = None) -> None:
        self.rendered = rendered
        self.folder = Path(tempfile.mkdtemp(prefix="hearth-chart-", dir="/tmp"))
        self.python = environment(version or newest().version)
        self.secret = new_secret()
        self.name = f"chart_{secrets.token_hex(4)}"
        self.server = psycopg.connect(database, autocommit=True)
        self.s3_port = free_ports(1)[0]
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop(*self.processes)
        name = sql.Identifier(self.name)
        self.server.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(name))
        self.server.execute(sql.SQL("DROP ROLE IF EXISTS {}").format(name))
        self.server.close()
        shutil.rmtree(self.folder)

    @property
    def key_id(self) -> str:
        """The id of the signing key."""
        return verify_key(self.secret["signing.key"])[0]

    def write_all(self, *pods: str) -> None:
        """Write what the volumes of these pods would hold."""
        folder = self.folder / "secrets"
        folder.mkdir(exist_ok=True)
        for name, value in self.secret.items():
            (folder / name).write_text(value)
        (self.folder / "log.yaml").write_text(self.rendered["ConfigMap/synapse"]["data"]["log.yaml"])
        for pod in pods:
            self.write(pod)

    def prepare(self, *pods: str) -> None:
        """Write what these pods' volumes would hold, and make the database, Redis and S3 that they need."""
        self.write_all(*pods)
        role = sql.Identifier(self.name)
        self.server.execute(sql.SQL("CREATE ROLE {} LOGIN").format(role))
        made = "CREATE DATABASE {} OWNER {} ENCODING 'UTF8' LOCALE 'C' TEMPLATE template0"
        self.server.execute(sql.SQL(made).format(role, role))
        if "ConfigMap/redis" in self.rendered:
            self._redis()
        if "media_storage_providers" in self.rendered.configuration():
            self._s3()

    def write(self, pod: str) -> None:
        """Write the configuration of one pod."""
        info = self.server.info
        database = {"host": info.host, "user": self.name, "dbname": self.name, "port": info.port}
        place = self.folder / pod
        (place / "tmp").mkdir(parents=True)
        (place / "media").mkdir()
        for name, text in self.rendered["ConfigMap/synapse"]["data"].items():
            if name in ("homeserver.yaml", f"{group_of(pod)}.yaml"):
                content = placed(name, yaml.safe_load(text), pod, self.folder, database)
                for provider in content.get("media_storage_providers", []):
                    provider["config"]["endpoint_url"] = f"http://127.0.0.1:{self.s3_port}"
                (place / name).write_text(yaml.safe_dump(content))
            else:
                (place / name).write_text(text)

    def start(self, *pods: str, key_id: str = "") -> None:
        """Start these pods' processes as their containers would be."""
        for pod in pods:
            place, group = self.folder / pod, group_of(pod)
            variables = {"POD_NAME": pod, "TMPDIR": str(place / "tmp"), "SIGNING_KEY_ID": key_id or self.key_id}
            variables |= {"AWS_SHARED_CREDENTIALS_FILE": str(self.folder / "secrets" / "s3-credentials")}
            if "media_storage_providers" in self.rendered.configuration():
                variables["PYTHONPATH"] = str(s3_provider())
            argv = (str(self.python), str(place / "start.py"), str(place), str(self.folder / "secrets"), group)
            self._spawn(pod, argv, variables)

    def files(self, pod: str) -> list[str]:
        """Return the configuration files that a pod's process reads, as its start.py gives them."""
        place, group = self.folder / pod, group_of(pod)
        (place / "instance.yaml").write_text(yaml.safe_dump({"worker_name": pod}))
        files = [place / "homeserver.yaml", self.folder / "secrets" / "extra.yaml"]
        files += [place / f"{group}.yaml", place / "instance.yaml"] if group != "main" else []
        return [str(file) for file in files]

    def _spawn(self, name: str, argv: tuple[str, ...], variables: Mapping[str, str]) -> None:
        environment = {"PATH": os.environ["PATH"], "HOME": str(self.folder), **variables}
        with (self.folder / f"{name}.log").open("wb") as log:
            command = Command(name, argv, self.folder, environment)
            self.processes[name] = subprocess.Popen(
                spawn_argv(command), cwd=self.folder, env=environment, stdout=log, stderr=log, start_new_session=True
            )

    def _redis(self) -> None:
        text = self.rendered["ConfigMap/redis"]["data"]["redis.conf"]
        text = text.replace("/etc/redis-secrets", str(self.folder / "secrets")).replace(
            "dir /data", f"dir {self.folder}"
        )
        (self.folder / "redis.conf").write_text(f"{text}\nport 0\nunixsocket {self.folder}/redis.sock\n")
        self._spawn("redis", (str(REDIS), str(self.folder / "redis.conf")), {})

    def _s3(self) -> None:
        program = Path(sys.executable).parent / "rclone"
        bucket = self.rendered.configuration()["media_storage_providers"][0]["config"]["bucket"]
        (self.folder / "s3" / bucket).mkdir(parents=True)
        options = ("--addr", f"127.0.0.1:{self.s3_port}", "--auth-key", f"{ACCESS},{SECRET}", "--vfs-cache-mode", "off")
        self._spawn("s3", (str(program), "serve", "s3", str(self.folder / "s3"), *options), {})

    def stop(self, *names: str) -> None:
        """Stop these processes and wait until they are gone."""
        for name in names:
            if self.processes[name].poll() is None:
                self.processes[name].send_signal(signal.SIGTERM)
        for name in names:
            try:
                self.processes[name].wait(20)
            except subprocess.TimeoutExpired:
                self.processes[name].kill()
                self.processes[name].wait()

    def connection(self) -> psycopg.Connection[tuple[Any, ...]]:
        """Return a connection to the server's database."""
        info = self.server.info
        return psycopg.connect(host=info.host, port=info.port, user=self.name, dbname=self.name)

    def client(self, pod: str, *, port: int = 8008) -> httpx.Client:
        """Return a client of one pod's HTTP listener."""
        transport = httpx.HTTPTransport(uds=str(self.folder / pod / f"{port}.sock"))
        return httpx.Client(transport=transport, base_url="http://pod", timeout=30)

    def ready(self, *pods: str, seconds: float = 120) -> None:
        """Wait until these pods pass their readiness probes."""
        paths = {pod: self.probe(pod) for pod in pods}
        end = time.monotonic() + seconds
        for pod, path in paths.items():
            while not self._answers(pod, path):
                assert self.processes[pod].poll() is None, f"{pod} ended:\n{self.log(pod)}"
                assert time.monotonic() < end, f"{pod} is not ready:\n{self.log(pod)}"
                time.sleep(0.1)

    def probe(self, pod: str) -> str:
        """Return the path of a pod's readiness probe."""
        container = self.rendered.pods()[f"synapse-{group_of(pod)}"]["spec"]["containers"][0]
        path: str = container["readinessProbe"]["httpGet"]["path"]
        return path

    def _answers(self, pod: str, path: str) -> bool:
        with socket.socket(socket.AF_UNIX) as probe:  # httpx leaves a socket open that could not connect
            try:
                probe.connect(str(self.folder / pod / "8008.sock"))
            except OSError:
                return False
        try:
            with self.client(pod) as client:
                return client.get(path).status_code == 200
        except httpx.TransportError:
            return False

    def log(self, pod: str) -> str:
        """Return the end of what a pod wrote."""
        return (self.folder / f"{pod}.log").read_text(errors="replace")[-3000:]

    def wait_log(self, pod: str, text: str, seconds: float = 60) -> None:
        """Wait until a pod has written `text`."""
        wait_until(lambda: text in self.log(pod), seconds, lambda: self.log(pod))


def wait_until(condition: Callable[[], bool], seconds: float, told: Callable[[], str] = str) -> None:
    """Wait until `condition()` holds, or fail with what `told()` says."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, told()
        time.sleep(0.1)


def group_of(pod: str) -> str:
    """Return a pod's group: `typing` for `synapse-typing-0`."""
    return pod.removeprefix("synapse-").rpartition("-")[0]


def pods_of(rendered: Rendered) -> list[str]:
    """Return the pods of all Synapse workloads, one of each Deployment."""
    found = rendered.kind("Deployment", "StatefulSet")
    groups = [each for each in found if "hearth.host/synapse" in each["spec"]["template"]["metadata"]["labels"]]
    return [
        f"{each['metadata']['name']}-{number}"
        for each in groups
        for number in range(each["spec"]["replicas"] if each["kind"] == "StatefulSet" else 1)
    ]
