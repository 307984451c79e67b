"""What the agent needs to know of this machine: folders, user ids, ports, and whether neighbours are isolated."""

from __future__ import annotations

import errno
import hashlib
import os
import socket
import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from provisioning.providers.base import ProviderError
from provisioning.providers.local import postgres
from provisioning.providers.local.agent import namespace
from provisioning.providers.local.agent.files import UnitFile
from provisioning.providers.local.paths import runtime_dir
from provisioning.providers.local.processes import can_drop_privileges, closed_folder

LAUNCHER = Path(__file__).parents[1] / "launcher.py"
FIRST_UID, LAST_UID = 70_000, 1_900_000_000
UIDS_EACH = 10_000
FIRST_PORT, LAST_PORT = 16_000, 32_700
"""Below the range from which Linux takes ports for outgoing connections, so that none of those can take ours."""


@dataclass(frozen=True)
class Machine:
    """The agent's folders and its means to isolate."""

    state: Path
    servers: Path
    environments: Path
    runtime: Path
    isolation: str
    root: bool
    programs: Path = postgres.BIN
    """PostgreSQL's programs, as the servers' users reach them."""
    launcher: Path = LAUNCHER

    @classmethod
    def survey(cls, state: Path, environments: Path) -> Machine:
        """Make the folders and find out what is possible here."""
        state.mkdir(mode=0o711, parents=True, exist_ok=True)
        servers = state / "servers"
        servers.mkdir(mode=0o711, exist_ok=True)
        servers.chmod(0o711)
        machine = cls(
            state=state,
            servers=servers,
            environments=environments,
            runtime=runtime_dir(state),
            isolation="",
            root=os.geteuid() == 0,
        )
        return replace(machine, isolation=machine.weakness())

    def passable(self) -> Machine:
        """Return this machine with all that servers need shown where their users can reach it.

        Call it in the agent's process alone, before it has threads: it changes what this process sees of the disk.
        """
        needed = (self.servers, self.environments, self.programs, self.launcher)
        if not self.root or _mapping() or not any(closed_folder(path / "one") for path in needed):
            return self
        self.environments.mkdir(mode=0o755, parents=True, exist_ok=True)
        package = self.programs.parents[1]
        folders = {"servers": self.servers, "environments": self.environments, "launcher": self.launcher.parent}
        libraries = package.with_name(f"{package.name}.libs")
        folders |= {f"lib/{path.name}": path for path in (package, libraries) if path.is_dir()}
        shown = namespace.show(folders, keep=(self.state, Path(sys.prefix), Path(sys.executable), self.runtime))
        if shown is None:
            return self
        moved = replace(
            self,
            servers=shown["servers"],
            environments=shown["environments"],
            programs=shown[f"lib/{package.name}"] / self.programs.relative_to(package),
            launcher=shown["launcher"] / self.launcher.name,
        )
        return replace(moved, isolation=moved.weakness())

    def weakness(self) -> str:
        """Return why servers can't be isolated from one another here, what that means, and the remedy; or ""."""
        paths = (self.servers / "one", self.environments / "one", self.programs / "postgres", self.launcher)
        reason = next(filter(None, [*(can_drop_privileges(path) for path in paths), _mapping()]), "")
        if not reason:
            return ""
        if not self.root:
            return f"{reason} Whoever breaks into one could read Hearth's files and keys too. Remedy: start it as root."
        return (
            f"{reason} Whoever breaks into one could read every file of this machine. Remedy: start Hearth with "
            "HEARTH_STATE=/var/lib/hearth, from a folder that all may pass, such as /opt."
        )

    @property
    def capabilities(self) -> tuple[str, ...]:
        """What a server's processes need where the machine can't isolate: to pass folders that are closed to others."""
        return ("dac_read_search",) if self.root and self.isolation else ()

    def new_identity(self, units: Iterable[UnitFile]) -> tuple[int | None, int | None]:
        """Return user and group id for a new server; (None, None) is our own."""
        if not self.root:
            return None, None
        if self.isolation:
            return postgres.nobody()
        # Two Hearths on one machine must not share ids, so each takes its own stretch by its folder's name.
        stretch = int.from_bytes(hashlib.sha256(os.fsencode(self.state)).digest()[:3], "big") % 100_000
        first = FIRST_UID + stretch * UIDS_EACH
        # Also what a server has whose unit file is damaged: nobody may get at its data by getting its user id.
        taken = {unit.uid for unit in units} | {path.stat().st_uid for path in self.servers.glob("*/*")}
        uid = next(uid for uid in range(first, first + UIDS_EACH) if uid not in taken)
        return uid, uid

    def settle(self, unit: UnitFile, units: Iterable[UnitFile]) -> bool:
        """Give a server the identity that it should have here; True if that is another than it had.

        One that was made where servers could not be isolated gets a user of its own as soon as that is possible.
        """
        if not self.root or (unit.uid is not None and (self.isolation or unit.uid >= FIRST_UID)):
            return False
        unit.uid, unit.gid = self.new_identity(units)
        return True

    def new_ports(self, units: Iterable[UnitFile]) -> tuple[int, int]:
        """Return two ports that nobody has and nobody listens on."""
        taken = {port for unit in units for port in (unit.port, unit.metrics_port)}
        start = int.from_bytes(hashlib.sha256(os.fsencode(self.state)).digest()[3:5], "big")
        span = LAST_PORT - FIRST_PORT
        found: list[int] = []
        for step in range(span):
            port = FIRST_PORT + (start + step) % span
            if port not in taken and port_free(port):
                found.append(port)
            if len(found) == 2:
                return found[0], found[1]
        raise ProviderError("This machine has no free port left. Nothing was changed. Stop something.", code="NoPort")


def port_free(port: int) -> bool:
    """Tell whether Synapse could listen on this loopback port now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
            probe.listen(1)
        except OSError:
            return False
    return True


def disk_error(error: OSError) -> ProviderError:
    """Turn a failed write into a sentence."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ProviderError(
            "The disk of this machine is full. What was written before is whole and nothing was lost. "
            "Make room, then retry.",
            code="DiskFull",
        )
    return ProviderError(
        f"This machine refused a file operation: {error.strerror or error} ({error.filename}). "
        "Nothing was lost. Repair it, then retry.",
        code="MachineError",
    )


def _mapping() -> str:
    """Return why user ids as high as ours can't be used, as in a container with 65,536 of them, or ""."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return ""
    for line in Path("/proc/self/uid_map").read_text(encoding="ascii").splitlines():
        inside, _, length = map(int, line.split())
        if inside <= FIRST_UID and inside + length >= LAST_UID:
            return ""
    return "This container maps too few user ids, so all servers share one."
