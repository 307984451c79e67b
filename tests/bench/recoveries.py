"""Thirty recoveries in a row: every row and every file of thirty moments of a server that was written to, compared.

One that differs ends it with what differs. The last line is JSON.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path

from tests.backups.restore.busy import Busy
from tests.backups.restore.conftest import Server
from tests.backups.restore.recoveries import recover

COUNT = 30


def main() -> int:
    """Back up, restore, compare, print."""
    folder = Path(tempfile.mkdtemp(prefix="hb-", dir="/tmp"))
    folder.chmod(0o755)
    server = Server(folder)
    try:
        server.cluster.make()
        print(json.dumps(recover(Busy(server).fill(COUNT, apart=0.5))), flush=True)  # noqa: T201 (this is a command)
    finally:
        server.stop()
        for each in (server.cluster, *server.living):
            each.stop()
        shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
