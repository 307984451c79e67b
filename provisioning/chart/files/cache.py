"""Keeps the copies of media on the node within bounds. Everything in S3 is fetched again when it is asked for.

`cache.py <folder> <bytes>`: looks every minute; above 70 % of `bytes` the files that were read longest ago go, until
half is left. Files younger than ten minutes stay: Synapse may still be sending them. Standard library only.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

EVERY = 60.0
YOUNG = 600.0
ABOVE, UNTIL = 0.7, 0.5


def trim(folder: Path, limit: int, now: float) -> int:
    """Remove the files read longest ago until `folder` holds half of `limit` bytes; return the bytes removed."""
    found = []
    for root, _, names in os.walk(folder):
        for name in names:
            path = Path(root, name)
            try:
                state = path.stat()
            except FileNotFoundError:
                continue
            found.append((max(state.st_atime, state.st_mtime), state.st_size, path))
    total, removed = sum(size for _, size, _ in found), 0
    if total <= limit * ABOVE:
        return 0
    for used, size, path in sorted(found):
        if total - removed <= limit * UNTIL or used > now - YOUNG:
            break
        path.unlink(missing_ok=True)
        removed += size
    return removed


def main(arguments: list[str]) -> None:
    """Trim for ever."""
    folder, limit = Path(arguments[0]), int(arguments[1])
    while True:
        removed = trim(folder, limit, time.time())
        if removed:
            sys.stderr.write(f"cache: removed {removed} bytes\n")
            sys.stderr.flush()
        time.sleep(EVERY)


if __name__ == "__main__":
    main(sys.argv[1:])
