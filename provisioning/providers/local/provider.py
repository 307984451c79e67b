"""The local provider as the engine sees it: a client of this machine's agent. Imports no Django."""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from provisioning.providers.base import (
    Observation,
    Progress,
    ProviderError,
    Recovering,
    Recovery,
    ServerSpec,
    StaleFence,
)

SILENCE_SECONDS = 20.0
"""The agent says every 5 seconds that it is alive; after this long it is not."""


class LocalProvider:
    """Speaks with the agent at `socket_path`; one connection for each call, so it may be used from many threads."""

    def __init__(self, socket_path: Path) -> None:
        self._path = socket_path

    def prepare(self, version: str, progress: Progress) -> None:
        """Make the environment of a Synapse version."""
        self._call({"verb": "prepare", "version": version}, progress)

    def ensure_storage(self, spec: ServerSpec, *, fence: int, progress: Progress) -> None:
        """Make folders, user, ports, and an empty running database."""
        self._call({"verb": "ensure_storage", "spec": _plain(spec), "fence": fence}, progress)

    def configure(self, spec: ServerSpec, *, fence: int, progress: Progress) -> None:
        """Write the configuration and the secrets."""
        self._call({"verb": "configure", "spec": _plain(spec), "fence": fence}, progress)

    def start(self, spec: ServerSpec, *, fence: int, progress: Progress) -> str:
        """Start it, again if it runs with something else than what is configured; return its URL once it answers."""
        return str(self._call({"verb": "start", "spec": _plain(spec), "fence": fence}, progress))

    def stop(self, server_id: str, *, fence: int, progress: Progress) -> None:
        """Stop it and keep it stopped."""
        self._call({"verb": "stop", "server_id": server_id, "fence": fence}, progress)

    def remove(self, server_id: str, *, fence: int, progress: Progress) -> None:
        """Stop it and remove everything of it."""
        self._call({"verb": "remove", "server_id": server_id, "fence": fence}, progress)

    def certificate_request(self, server_id: str, *, fence: int) -> bytes:
        """Return a certificate request (PEM) of the server's agent; its private key stays on this machine's disk."""
        request = {"verb": "certificate_request", "server_id": server_id, "fence": fence}
        return str(self._call(request, lambda _: None)).encode()

    def install_certificate(self, server_id: str, *, chain: str, trust: str, address: str, fence: int) -> None:
        """Give the agent its certificate, the authorities to trust, and Hearth's internal address."""
        texts = {"chain": chain, "trust": trust, "address": address}
        self._call({"verb": "install_certificate", "server_id": server_id, "fence": fence, **texts}, lambda _: None)

    def recover(self, spec: ServerSpec, recovery: Recovery, *, fence: int, progress: Progress) -> None:
        """Begin to bring a server's backups back into a new instance, or go on with it."""
        texts = {"source": recovery.source, "holder": recovery.holder, "module": recovery.module}
        wanted: dict[str, Any] = {**texts, "request": dict(recovery.request), "files": dict(recovery.files)}
        wanted["export"] = dict(recovery.export)
        self._call({"verb": "recover", "spec": _plain(spec), "recovery": wanted, "fence": fence}, progress)

    def recovering(self, instance: str) -> Recovering:
        """Return how far that is."""
        return Recovering(**self._call({"verb": "recovering", "server_id": instance}, lambda _: None))

    def cancel_recovery(self, instance: str, *, fence: int) -> None:
        """End it; what was fetched stays until it is removed."""
        self._call({"verb": "cancel_recovery", "server_id": instance, "fence": fence}, lambda _: None)

    def since(
        self,
        server_id: str,
        *,
        fence: int | None = None,  # noqa: ARG002 (`stop` stops here)
    ) -> Mapping[str, Any] | None:
        """Return what the server's own database says of now; None if it can't be asked."""
        found: Mapping[str, Any] | None = self._call({"verb": "since", "server_id": server_id}, lambda _: None)
        return found

    def exchange(self, server_id: str, instance: str, *, restored: bool, fence: int, progress: Progress) -> None:
        """Let the server have what was restored in the instance, and the instance what it had; or the other way."""
        request = {
            "verb": "exchange",
            "server_id": server_id,
            "instance": instance,
            "restored": restored,
            "fence": fence,
        }
        self._call(request, progress)

    def observe(self) -> Mapping[str, Observation]:
        """Return every server of this machine."""
        found = self._call({"verb": "observe"}, lambda _: None)
        return {key: Observation(**value) for key, value in found.items()}

    def route(self, server_id: str, url: str) -> str:  # noqa: ARG002 (needed where they differ)
        """Return `url`: on this machine Hearth and clients take the same way."""
        return url

    def weakness(self) -> str:
        """Return why servers of this machine are not isolated from one another, or ""."""
        return str(self._call({"verb": "weakness"}, lambda _: None))

    def _call(self, request: dict[str, Any], progress: Progress) -> Any:
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
                connection.settimeout(SILENCE_SECONDS)
                connection.connect(str(self._path))
                if _peer(connection) not in (0, os.geteuid()):
                    raise _unreachable()  # somebody else's: it must not get a server's secrets
                connection.sendall(json.dumps(request).encode() + b"\n")
                with connection.makefile("r", encoding="utf-8") as answers:
                    lines = iter(answers.readline, "")
                    return self._read(lines, progress)
        except OSError:
            raise _unreachable() from None

    @staticmethod
    def _read(lines: Any, progress: Progress) -> Any:
        for line in lines:
            message = json.loads(line)
            if "line" in message:
                progress(message["line"])
            elif "result" in message:
                return message["result"]
            elif "error" in message:
                error = message["error"]
                if error["code"] == "StaleFence":
                    raise StaleFence(error["message"])
                raise ProviderError(error["message"], code=error["code"], retry=error["retry"])
        raise _unreachable()


def _peer(connection: socket.socket) -> int:
    """Return the user id of the process at the other end (unix(7), SO_PEERCRED)."""
    found = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", found)[1])


def _plain(spec: ServerSpec) -> dict[str, Any]:
    return {field.name: getattr(spec, field.name) for field in dataclasses.fields(spec)} | {
        "secrets": dict(spec.secrets),
        "backup": dict(spec.backup),
    }


def _unreachable() -> ProviderError:
    return ProviderError(
        "The agent that keeps the servers of this machine does not answer. Running servers and their data are not "
        "touched. It is started again by itself; the step is tried again.",
        code="AgentUnreachable",
    )
