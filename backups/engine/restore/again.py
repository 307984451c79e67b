"""What is true of the living server is applied once more to a database that a restore brought back. No Django.

    python -m backups.engine settle <request.json>

For the moment when it takes the server's place, which is later than the restore; and for the older database when it
gets its place back. It is a database that somebody may live on by now, so nothing is done here that a power cut could
break; and where its sequences are now is where they begin.
"""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from backups.engine.progress import Progress
from backups.engine.restore import disk
from backups.engine.restore.errors import RestoreError
from backups.engine.restore.folder import Folder
from backups.engine.restore.replay import Server, is_recovering
from backups.engine.restore.request import Request, Settle
from backups.engine.restore.settle import connected, sequences, settle

DURABLE = {"fsync": "on", "full_page_writes": "on"}


def settle_again(request: Request, progress: Progress, stop: threading.Event) -> dict[str, Any]:
    """Apply `request.settle` to what lies in `request.data`, and return the restore's evidence with what came of it.

    Raises `RestoreError`; `BadRequest` where no finished restore of this request made that folder.
    """
    began = time.monotonic()
    wanted = request.settle or Settle()
    try:
        with Folder(request) as folder:
            data, state = Path(request.data), folder.state
            if not state.done or is_recovering(data):
                raise RestoreError(
                    f"There is no finished restore in {data}. Nothing was changed. Restore first.", code="BadRequest"
                )
            progress.say("restore", step="settle", done_bytes=0, total_bytes=0)
            now = datetime.now(UTC)
            private = Server(data, folder.path, request.tools, stop)
            with folder.sockets() as sockets, private.running(sockets, None, DURABLE) as server:
                server.await_ready(None)
                with connected(server, request, wanted) as connection:
                    before = sequences(connection)
                    settled = settle(connection, wanted, before=before, moment=state.moment or now, now=now)
                server.end()
            folder.clean()
            folder.save()
    except OSError as error:
        raise disk.failed(error, error.filename or request.data) from None
    found = {**state.result, "settled": settled.told}
    found["seconds"] = {**found.get("seconds", {}), "settle": round(time.monotonic() - began, 3)}
    progress.say("restored", **found)
    return found
