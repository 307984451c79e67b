"""Recoveries in a row, each to another moment of a server that was written to, each compared to the last byte."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

from tests.backups.restore.busy import Busy


def recover(busy: Busy) -> dict[str, Any]:
    """Bring each of its moments back and compare every row and file; return how many that were, and the slowest."""
    rows = files = 0
    seconds = []
    for number, moment in enumerate(busy.moments):
        request = busy.server.request(f"n{number}", to=moment)
        began = time.monotonic()
        busy.server.restore(request)
        seconds.append(round(time.monotonic() - began, 2))
        some = busy.check(request, moment)
        rows, files = rows + some[0], files + some[1]
        shutil.rmtree(Path(request.data).parent)
    return {"recoveries": len(seconds), "equal": len(seconds), "rows": rows, "files": files, "slowest_s": max(seconds)}
