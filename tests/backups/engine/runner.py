"""An engine in a process of its own, with keys from a file: what the tests kill."""

from __future__ import annotations

import sys
from pathlib import Path

from backups.engine.__main__ import run
from backups.engine.agent import Engine
from backups.engine.build import open_store
from backups.engine.settings import load
from tests.backups.keys import FileKeys

if __name__ == "__main__":
    settings = load(Path(sys.argv[1]))
    sys.exit(run(Engine(settings, open_store(settings), FileKeys(Path(sys.argv[2])))))
