"""A server's folder on this machine: who may read what in it, its configuration, and its signing key."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import shutil

import yaml

from provisioning.providers.base import ProviderError, ServerSpec
from provisioning.providers.local import configuration, environments, postgres
from provisioning.providers.local.agent.credentials import Credentials
from provisioning.providers.local.agent.files import REMOVED, UnitFile, write
from provisioning.providers.local.agent.machine import Machine
from provisioning.providers.local.configuration import Places
from provisioning.providers.local.keys import KeyUnreadable, verify_key
from provisioning.providers.local.paths import runtime_dir
from provisioning.providers.local.processes import Command, Refused
from security.durable import sync_folder


class Folder:
    """The folder of `unit`'s server, and the commands of its two processes."""

    def __init__(self, machine: Machine, unit: UnitFile) -> None:
        self.machine = machine
        self.unit = unit
        self.path = machine.servers / unit.server_id
        self.sockets = machine.runtime / unit.server_id
        self.data = self.path / "postgres"
        self.config = self.path / "config" / "homeserver.yaml"
        self.credentials = Credentials(self.path / "identity", unit.server_id)
        self.go = self.sockets.with_suffix(".go")
        """Made when Synapse may start; see launcher.py."""
        self.places = Places(
            port=unit.port,
            metrics_port=unit.metrics_port,
            socket_dir=self.sockets,
            signing_key=self.path / "config" / "signing.key",
            media=self.path / "media",
            log_config=self.path / "config" / "log.yaml",
            log=self.path / "work" / "homeserver.log",
        )

    def make(self) -> None:
        """Make what is missing. The server's user may pass its folder and owns what Synapse and PostgreSQL write.

        Configuration and key are root's: a homeserver that was broken into can't change them. So are the logs that the
        agent writes, since following a link laid there would let it write anywhere.
        """
        uid, gid = self.unit.uid, self.unit.gid
        runtime_dir(self.machine.state)  # /tmp may have been emptied
        for path, mode, theirs in (
            (self.path, 0o710, False),
            (self.path / "config", 0o750, False),
            (self.path / "logs", 0o700, False),
            (self.path / "media", 0o700, True),
            (self.path / "work", 0o700, True),
            (self.sockets, 0o700, True),
        ):
            path.mkdir(mode=0o700, exist_ok=True)
            if uid is not None and gid is not None:
                os.chown(path, uid if theirs else 0, gid)
            path.chmod(mode)

    def own(self) -> None:
        """Give the server's user what is its own: a copy brought back from a backup may belong to somebody else."""
        uid, gid = self.unit.uid, self.unit.gid
        if os.geteuid() != 0 or uid is None or gid is None:
            return
        for path in (self.data, self.places.media, self.path / "work"):
            if path.exists() and path.stat().st_uid != uid:
                postgres.give(path, uid, gid)
        for path in (self.path / "config").glob("*"):
            os.chown(path, 0, gid, follow_symlinks=False)
        self.credentials.own()

    def save(self) -> None:
        """Write the unit file."""
        self.unit.save(self.path)

    def configure(self, spec: ServerSpec) -> bool:
        """Write configuration and secrets; False if all of it said that already."""
        self._signing_key(spec.secrets["signing_key"])
        self._write("log.yaml", configuration.render(configuration.log_config(self.places)))
        return self._write("homeserver.yaml", configuration.render(configuration.homeserver(spec, self.places)))

    def relocate(self) -> None:
        """Make the configuration speak of where things lie now: the state folder may have been moved or copied.

        With the old paths Synapse would make itself a new signing key, or use the database of the original.
        """
        text = self.config.read_text(encoding="utf-8")
        if all(str(path) in text for path in (self.places.signing_key, self.places.media, self.sockets)):
            return
        content = configuration.placed(yaml.safe_load(text), self.places)
        self._write("log.yaml", configuration.render(configuration.log_config(self.places)))
        self._write("homeserver.yaml", configuration.render(content))

    def check_key(self) -> None:
        """Raise unless the key in the folder is the server's: Synapse would silently make a new one, a new identity."""
        try:
            found = verify_key(self.places.signing_key.read_text(encoding="utf-8"))
        except (OSError, KeyUnreadable, UnicodeDecodeError):
            found = ("none", "")
        if found == (self.unit.key_id, self.unit.public_key):
            return
        raise Refused(
            "SigningKeyMismatch",
            f"The signing key in the server's folder is {found[0]}, not the {self.unit.key_id} that it was made with. "
            "Synapse was not started: with another key, other servers would stop trusting it. Its data is safe. "
            "Staff must put the right key back and restart the server.",
        )

    def digest(self) -> str:
        """Return what Synapse would be started with now, in short."""
        return f"{self.unit.version} {hashlib.sha256(self.config.read_bytes()).hexdigest()}"

    def log_tail(self, name: str, lines: int = 6) -> str:
        """Return the last lines that `synapse` or `postgres` wrote on its standard error, for a message."""
        with contextlib.suppress(OSError):
            text = (self.path / "logs" / f"{name}.log").read_text(encoding="utf-8", errors="replace")
            return " Its last lines:\n" + "\n".join(text.splitlines()[-lines:])
        return ""

    async def remove(self) -> None:
        """Remove every trace. Nothing of it may run."""
        gone = self.path.with_name(REMOVED + self.unit.server_id)
        if self.path.exists():
            self.path.rename(gone)  # from here on it is no server any more, however far the removal gets
            sync_folder(gone.parent)
        await asyncio.to_thread(shutil.rmtree, gone, ignore_errors=True)
        await asyncio.to_thread(shutil.rmtree, self.sockets, ignore_errors=True)
        self.go.unlink(missing_ok=True)

    def postgres_command(self) -> Command:
        """Return the command of its PostgreSQL."""
        return postgres.server_command(
            self.data,
            self.sockets,
            name=f"PostgreSQL of {self.unit.server_name}",
            uid=self.unit.uid,
            gid=self.unit.gid,
            log=self.path / "logs" / "postgres.log",
            capabilities=self.machine.capabilities,
            stop_timeout=6.0,
            programs=self.machine.programs,
            oom_score=200,
        )

    def synapse_command(self, version: str, patience: float) -> Command:
        """Return the command of its Synapse, which waits `patience` seconds at most for the go file."""
        python = environments.environment_python(self.machine.environments, version)
        work = self.path / "work"
        return Command(
            f"Synapse of {self.unit.server_name}",
            (str(python), "-I", str(self.machine.launcher), str(self.config), str(self.go), str(patience)),
            work,
            # Few arenas: threads that allocate little would else each keep one.
            {"PATH": os.defpath, "LC_ALL": "C.UTF-8", "TZ": "UTC", "MALLOC_ARENA_MAX": "2", "HOME": str(work)},
            log=self.path / "logs" / "synapse.log",
            uid=self.unit.uid,
            gid=self.unit.gid,
            stop_timeout=7.0,
            # A homeserver comes back within seconds; Hearth's own processes (0) and databases should stay.
            oom_score=500,
            capabilities=self.machine.capabilities,
        )

    def _signing_key(self, line: str) -> None:
        """Write the signing key at the first time, and never another one."""
        key_id, public = verify_key(line)
        if self.unit.key_id and (key_id, public) != (self.unit.key_id, self.unit.public_key):
            raise ProviderError(
                f"Hearth wants to give the server the signing key {key_id}, but it was made with {self.unit.key_id}. "
                "Other servers would no longer trust it, so nothing was changed. Staff must find the right key.",
                code="SigningKeyMismatch",
                retry=False,
            )
        if not self.unit.configured:
            self._write("signing.key", line.strip() + "\n")
        self.unit.key_id, self.unit.public_key = key_id, public
        self.check_key()

    def _write(self, name: str, text: str) -> bool:
        """Write a file under config/ for Synapse to read; False if it says that already."""
        path = self.path / "config" / name
        with contextlib.suppress(FileNotFoundError):
            if path.read_text(encoding="utf-8") == text:
                return False
        write(path, text, mode=0o640, gid=self.unit.gid)
        return True
