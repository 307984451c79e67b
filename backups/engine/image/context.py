"""`python -m backups.engine.image.context FOLDER`: fills the folder that the engine's image is built in."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from provisioning.operator.image.context import ROOT, Failed, begin, finish, requirements
from provisioning.providers.base import ProviderError

__all__ = ["PACKAGES", "ROOT", "Failed", "fill", "requirements", "sources"]
HERE = Path(__file__).resolve().parent
ENGINE, SECURITY = Path("backups/engine"), Path("platform/security")
PACKAGES = frozenset(
    {
        *("anyio", "boto3", "botocore", "certifi", "cffi", "cryptography", "google-crc32c", "h11", "httpcore", "httpx"),
        *("idna", "jmespath", "msgspec", "psycopg", "psycopg-binary", "pycparser", "python-dateutil", "s3transfer"),
        *("six", "typing-extensions", "urllib3", "zstandard"),
    }
)
"""What the engine imports, and what that needs. One that is missing fails the image: it imports all of the engine."""
ALONE = (
    Path("backups/__init__.py"),
    Path("provisioning/__init__.py"),
    Path("provisioning/providers/__init__.py"),
    Path("provisioning/providers/local/__init__.py"),
    Path("provisioning/providers/local/processes.py"),
)
"""What of Hearth it needs beside its own folder and what keeps secrets."""
KINDS = {".py", ".sql", ".md", ".mjs"}
"""Files of the engine that it needs: programs, what a restore settles by, and what goes into an export."""
SECURE = (".", "streams", "transport", "datakeys")
"""Folders of `security`; of each what runs without Django is used."""


def sources() -> dict[Path, Path]:
    """Return the engine's files: where they lie in the image, and in the repository."""
    engine = sorted(path.relative_to(ROOT) for path in (ROOT / ENGINE).rglob("*") if path.suffix in KINDS)
    found = {path: path for path in (*ALONE, *engine)}
    for part in SECURE:
        for path in sorted((ROOT / SECURITY / part).glob("*.py")):
            place = path.relative_to(ROOT)
            found[place.relative_to("platform")] = place
    return found


def fill(folder: Path) -> None:
    """Fill an empty or new folder. Raises `Failed`."""
    begin(folder, sources())
    finish(folder, PACKAGES, HERE / "Containerfile")


def main(arguments: Sequence[str]) -> int:
    """Return the exit code."""
    parser = argparse.ArgumentParser(prog="backups.engine.image.context", description=__doc__)
    parser.add_argument("folder", type=Path)
    try:
        fill(parser.parse_args(arguments).folder)
    except (Failed, ProviderError) as fault:
        sys.stderr.write(f"{fault}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
