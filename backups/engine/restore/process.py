"""A restore as a process: a request in a file, progress on standard output, SIGTERM to cancel. Imports no Django.

It ends with 0 when all is restored (the last line is `restored`), 3 when it was cancelled, and 1 when it failed: the
last line is then `restore-failed`, with `code`, `text`, `retry`, `objects`, `points`.
"""

from __future__ import annotations

import signal
import threading
import traceback
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backups.engine import memory
from backups.engine.build import Hearth, open_store
from backups.engine.objects import KeyService
from backups.engine.progress import Progress
from backups.engine.restore.command import Restore
from backups.engine.restore.errors import Cancelled, RestoreError
from backups.engine.restore.keys import OpenKeys
from backups.engine.restore.request import Request, load
from backups.engine.settings import SettingsError
from backups.engine.stores.base import StoreError
from security.streams import DataKey

if TYPE_CHECKING:
    from backups.engine.restore.export import Export

Ask = Callable[[uuid.UUID], DataKey]
DONE, FAILED, CANCELLED = 0, 1, 3


def main(path: Path) -> int:
    """Carry out the restore that a file asks for, and return the exit code."""
    progress = Progress()
    try:
        request = load(path)
        return run(request, under_grant(request), progress)
    except RestoreError as error:
        return _failed(progress, error)


def export(path: Path) -> int:
    """Carry out the export that a file asks for, and return the exit code. It ends with `exported`, or as a restore."""
    from backups.engine.restore.export import load as load_export  # noqa: PLC0415 (what is not used is not imported)

    progress = Progress()
    try:
        wanted = load_export(path)
        ask, hearth = under_grant(wanted.request), wanted.request.hearth
        return run_export(wanted, ask, progress, Hearth(hearth) if hearth else None)
    except RestoreError as error:
        return _failed(progress, error)


def settle(path: Path) -> int:
    """Apply what a file's request says once more to what it restored, and return the exit code. Asks for no keys."""
    from backups.engine.restore.again import settle_again  # noqa: PLC0415 (as above)

    progress = Progress()
    stop = _stopped_by_signals()
    return _told(progress, lambda: settle_again(load(path), progress, stop))


def run(request: Request, ask: Ask, progress: Progress) -> int:
    """Restore, with keys from `ask`, until the end or a signal. Return the exit code."""
    memory.keep_little()
    stop = _stopped_by_signals()
    return _told(
        progress,
        lambda: Restore(request, open_store(request), OpenKeys(ask, stop), progress, stop).run(),
    )


def run_export(wanted: Export, ask: Ask, progress: Progress, keys: KeyService | None = None) -> int:
    """Export, as `run` restores. `keys` gives the key of an archive."""
    from backups.engine.restore.export import Exporter  # noqa: PLC0415 (as above)

    memory.keep_little()
    stop = _stopped_by_signals()
    return _told(
        progress,
        lambda: Exporter(wanted, open_store(wanted.request), OpenKeys(ask, stop), progress, stop, keys=keys).run(),
    )


def _stopped_by_signals() -> threading.Event:
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    return stop


def _told(progress: Progress, work: Callable[[], Any]) -> int:
    try:
        work()
    except RestoreError as error:
        return _failed(progress, error)
    except (SettingsError, StoreError) as error:
        code, retry = (error.code, error.retry) if isinstance(error, StoreError) else ("BadRequest", False)
        return _failed(progress, RestoreError(str(error), code=code, retry=retry))
    except Exception as error:  # somebody must hear of it in the way they listen
        traceback.print_exc()
        return _failed(progress, RestoreError(f"It broke: {error}", code="EngineFault"))
    return DONE


def under_grant(request: Request) -> Ask:
    """Return what asks Hearth for data keys. Raises `RestoreError` where the request does not say how."""
    hearth, grant = request.hearth, request.grant
    if hearth is None or grant is None:
        raise RestoreError(
            "The request does not say where Hearth is and which grant opens these backups. Nothing was restored.",
            code="BadRequest",
        )
    client = Hearth(hearth)

    def ask(identity: uuid.UUID) -> DataKey:
        return client.unwrap(grant, identity)

    return ask


def _failed(progress: Progress, error: RestoreError) -> int:
    progress.say(
        "restore-failed",
        code=error.code,
        text=str(error),
        retry=error.retry,
        objects=error.objects,
        points=error.points,
    )
    return CANCELLED if isinstance(error, Cancelled) else FAILED
