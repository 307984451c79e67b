"""`python -m backups.engine.image.fits FOLDER`: shows that an image has what the engine needs, while it is made.

Imports everything that the engine may import later, and links PostgreSQL's newest client programs into the folder.
"""

from __future__ import annotations

import importlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

MODULES = (
    "backups.engine.__main__",
    "backups.engine.serving",
    "backups.engine.media.bucket",
    "backups.engine.stores.folder",
    "backups.engine.stores.s3",
    "backups.engine.restore.process",
    "backups.engine.recovering.pod",
    "backups.engine.recovering.temporary",
)
PROGRAMS = ("pg_receivewal", "pg_basebackup")
RESTORES = ("postgres", "pg_amcheck")
"""What brings a server back needs of the same major; the second looks at a database's structure where it is there."""
PLACES = ("/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin", "/usr/lib/postgresql*/bin")
VERSION = re.compile(r" (\d+)")


def main(folder: Path) -> int:
    """Return the exit code; a sentence says what is missing."""
    for name in MODULES:
        importlib.import_module(name)
    if shutil.which("setpriv") is None:
        return _refuse("There is no setpriv (package util-linux).")
    found = max(filter(None, map(version, _places())), default=None)
    if found is None:
        return _refuse(f"There is no {' and no '.join(PROGRAMS)} (Debian: package postgresql-client-15 or later).")
    folder.mkdir(parents=True, exist_ok=True)
    for name in PROGRAMS:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(found[1] / name)
    for name in RESTORES:
        (folder / name).unlink(missing_ok=True)
        if (found[1] / name).exists():
            (folder / name).symlink_to(found[1] / name)
    restores = "" if (folder / RESTORES[0]).exists() else " It can back up and bring nothing back: it has no server."
    print(f"PostgreSQL's programs: {found[0]}, of {found[1]}.{restores}")  # noqa: T201 (this is a command)
    return 0


def _places() -> list[Path]:
    """Return every folder that may hold the programs."""
    own = [path for pattern in PLACES for path in sorted(Path("/").glob(pattern.lstrip("/")))]
    return [*own, *map(Path, os.defpath.split(os.pathsep)), Path("/usr/local/bin")]


def version(place: Path) -> tuple[int, Path] | None:
    """Return the programs' major where all of them are and run."""
    majors = set()
    for name in PROGRAMS:
        try:
            done = subprocess.run([place / name, "--version"], capture_output=True, text=True, check=True, timeout=60)
        except (OSError, subprocess.SubprocessError):
            return None
        majors |= {int(each) for each in VERSION.findall(done.stdout)[:1]}
    return (majors.pop(), place) if len(majors) == 1 else None


def _refuse(text: str) -> int:
    sys.stderr.write(f"This base does not fit: {text}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
