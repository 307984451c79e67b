"""A restore in a process of its own, with keys from a file: what the tests kill."""

from __future__ import annotations

import sys
from pathlib import Path

from backups.engine.progress import Progress
from backups.engine.restore.process import run
from backups.engine.restore.request import load
from tests.backups.keys import FileKeys

if __name__ == "__main__":
    sys.exit(run(load(Path(sys.argv[1])), FileKeys(Path(sys.argv[2])).open, Progress()))
