"""What the programs that back servers up and bring them back are told about this machine, and how they are started.

They are modules that the spec names (`backups.engine`): nothing of them is imported here. They run as the agent's own
user, because neither a server's identity nor its older backups may be within reach of the server's own user.
"""

from __future__ import annotations

import base64
import os
import re
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from provisioning.providers.base import ProviderError
from provisioning.providers.local.agent.credentials import Credentials
from provisioning.providers.local.agent.folder import Folder
from provisioning.providers.local.processes import Command

_MODULE = re.compile(r"[a-z_]+(\.[a-z_]+)*")
_FILE = re.compile(r"[a-z0-9][a-z0-9.-]{0,60}")


def checked(wanted: Mapping[str, Any], part: str, ours: Collection[str]) -> dict[str, bytes]:
    """Return the files that come along, or raise `ProviderError` where what is wanted makes no sense.

    `part` names its JSON object; `ours` are names that no file of it may have.
    """
    try:
        files = {str(name): base64.b64decode(text, validate=True) for name, text in wanted.get("files", {}).items()}
        good = _MODULE.fullmatch(str(wanted["module"])) and isinstance(wanted[part], dict)
        good = good and all(_FILE.fullmatch(name) and name not in ours for name in files)
    except (KeyError, ValueError, AttributeError, TypeError):
        good = None
    if not good:
        raise ProviderError(
            "What is to back the server up, or to bring it back, can't be understood. Nothing was changed.",
            code="BadRequest",
            retry=False,
        )
    return files


def tools(folder: Folder) -> dict[str, Any]:
    """Return where PostgreSQL's programs are, and as whom they run for this server."""
    return {
        "programs": str(folder.machine.programs),
        "uid": folder.unit.uid,
        "gid": folder.unit.gid,
        "capabilities": list(folder.machine.capabilities),
    }


def hearth(identity: Credentials) -> dict[str, str]:
    """Return where Hearth is and who asks it; the files are read anew at each call, so they may be renewed."""
    return {
        "address_file": str(identity.folder / "address"),
        "certificate": str(identity.pair_file),
        "key": str(identity.pair_file),
        "trust": str(identity.trust),
    }


def make_folder(path: Path, gid: int | None) -> None:
    """Make a folder of ours that the server's group may pass: PostgreSQL's tools have theirs below it."""
    path.mkdir(mode=0o700, exist_ok=True)
    if gid is not None and os.geteuid() == 0:
        os.chown(path, 0, gid)
    path.chmod(0o710)


def command(name: str, words: tuple[str, ...], *, log: Path, stop_timeout: float, oom_score: int) -> Command:
    """Return the command `python -m <words>`."""
    env = {"PATH": os.defpath, "LC_ALL": "C.UTF-8", "TZ": "UTC", "MALLOC_ARENA_MAX": "2"}
    env |= {key: os.environ[key] for key in ("PYTHONPATH",) if key in os.environ}
    return Command(
        name,
        (sys.executable, "-P", "-m", *words),
        Path("/"),
        env,
        log=log,
        stop_timeout=stop_timeout,
        oom_score=oom_score,
    )
