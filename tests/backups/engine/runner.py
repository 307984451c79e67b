"""An engine in a process of its own, with keys from a file: what the tests kill."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

from backups.engine.__main__ import run
from backups.engine.agent import Engine
from backups.engine.build import open_store
from backups.engine.settings import load
from backups.engine.stores.base import Store, Stored
from tests.backups.keys import FileKeys


class Hanging:
    """A store that does not come back from a `put` as long as `switch` is there.

    Beside it `.hangs` says that WAL waits.
    """

    def __init__(self, store: Store, switch: Path) -> None:
        self._store, self._switch = store, switch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def put(self, name: str, pieces: Iterable[bytes | memoryview]) -> Stored:
        while self._switch.exists():
            if "/wal/" in name:
                self._switch.with_suffix(".hangs").touch()
            time.sleep(0.1)
        return self._store.put(name, pieces)


if __name__ == "__main__":
    settings, keys = load(Path(sys.argv[1])), Path(sys.argv[2])
    store = cast("Store", Hanging(open_store(settings), keys.with_suffix(".hang")))
    sys.exit(run(Engine(settings, store, FileKeys(keys))))
