"""What the agent writes down about a server, so that all comes back after a reboot without any database."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from security.durable import replace_file

UNIT = "unit.json"
REMOVED = ".removed-"
TOMBSTONES = "removed.json"
TOMBSTONES_KEPT = 2000


@dataclass
class UnitFile:
    """A server's desired state on this machine. Its file is mode 0600."""

    server_id: str
    server_name: str
    version: str
    port: int
    metrics_port: int
    uid: int | None
    gid: int | None
    superuser_password: str
    fence: int = 0
    wanted: bool = False
    """Whether it should run."""
    configured: bool = False
    suspended: bool = False
    key_id: str = ""
    public_key: str = ""
    backup_password: str = ""
    """Of the role with which it is backed up; made when that begins."""
    crashes: int = 0
    instance_of: str = ""
    """Of which server backups were brought back here; empty for a server itself."""
    exchanged: bool = False
    """Of an instance: it holds what its server had before, and the server what was restored."""
    exchanging: dict[str, Any] = field(default_factory=dict)
    """Of a server: the exchange that is under way; see exchange.py."""

    def save(self, folder: Path) -> None:
        """Write it so that a crash or a full disk leaves the old one or the new one, never a half."""
        write(folder / UNIT, json.dumps(dataclasses.asdict(self), indent=1))


def load_units(servers: Path) -> Iterator[UnitFile]:
    """Yield every server's unit file. A damaged one is left where it is and said aloud; the others still run."""
    known = {field.name for field in dataclasses.fields(UnitFile)}
    for path in sorted(servers.glob(f"*/{UNIT}")):
        if path.parent.name.startswith("."):
            continue
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            yield UnitFile(**{name: value for name, value in values.items() if name in known})
        except (OSError, ValueError, TypeError, AttributeError) as error:
            print(f"{path} can't be read, so its server stays down: {error}", file=sys.stderr)  # noqa: T201 (our log)


def write(path: Path, text: str, *, mode: int = 0o600, gid: int | None = None) -> None:
    """Replace a file as a whole, durably, with that mode and group from its first moment in place."""
    replace_file(path, text.encode(), mode=mode, gid=gid)


class Tombstones:
    """The highest fence of each server that was removed, so that a late worker can't make it again."""

    def __init__(self, servers: Path) -> None:
        self._path = servers / TOMBSTONES
        self._fences: dict[str, int] = {}
        with contextlib.suppress(FileNotFoundError, ValueError):
            self._fences = json.loads(self._path.read_text(encoding="utf-8"))

    def add(self, server_id: str, fence: int) -> None:
        """Remember a removed server; the oldest are forgotten beyond 2,000."""
        self._fences.pop(server_id, None)
        self._fences[server_id] = fence
        for old in list(self._fences)[:-TOMBSTONES_KEPT]:
            del self._fences[old]
        write(self._path, json.dumps(self._fences))

    def fence(self, server_id: str) -> int:
        """Return the fence that a removed server had, or 0."""
        return self._fences.get(server_id, 0)
