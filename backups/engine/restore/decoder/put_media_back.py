#!/usr/bin/env python3
"""Put exported files to where Synapse looks for them. Needs Python 3.8 or later and nothing else.

    python3 put_media_back.py <folder of the export> <Synapse's media_store_path>

Each file is compared with SHA256SUMS first; nothing is written over. Run again it does only what is left.
"""

from __future__ import annotations

import csv
import hashlib
import shutil
import sys
from pathlib import Path


def main(arguments: list[str]) -> int:
    """Return how it ended: 0 when every file is in its place, 1 when some are not, 2 when it was called wrongly."""
    if len(arguments) != 2:
        sys.stderr.write(__doc__ or "")
        return 2
    export, store = Path(arguments[0]), Path(arguments[1])
    sums = {name: digest for digest, _, name in (line.partition("  ") for line in _lines(export / "SHA256SUMS"))}
    wrong = 0
    with (export / "media.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            source = export / row["file"]
            if not source.is_file() or _sum(source) != sums.get(row["file"]):
                sys.stderr.write(f"{row['file']} is missing or is not what was exported.\n")
                wrong += 1
                continue
            _put(source, store / place(row["media_id"]))
    sys.stdout.write(f"{wrong} files could not be put back.\n" if wrong else "All files are in their places.\n")
    return 1 if wrong else 0


def place(media_id: str) -> Path:
    """Return where below its media store Synapse keeps an uploaded file."""
    return Path("local_content") / media_id[:2] / media_id[2:4] / media_id[4:]


def _put(source: Path, target: Path) -> None:
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    coming = target.with_name(target.name + ".coming")
    shutil.copyfile(source, coming)
    coming.replace(target)


def _sum(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for piece in iter(lambda: file.read(1 << 20), b""):
            digest.update(piece)
    return digest.hexdigest()


def _lines(path: Path) -> list[str]:
    return [line for line in path.read_text(encoding="utf-8").split("\n") if line]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
