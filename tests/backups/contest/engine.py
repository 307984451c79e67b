"""An engine that is told by lines on its standard input what to do: `point`, `moment`."""

from __future__ import annotations

import sys
import threading
import uuid
from pathlib import Path

from backups.engine.__main__ import run
from backups.engine.agent import Engine
from backups.engine.build import open_store
from backups.engine.hearth import Order
from backups.engine.settings import load
from tests.backups.keys import FileKeys


def _obey(engine: Engine) -> None:
    for line in sys.stdin:
        if line.strip() == "point":
            engine.order(Order(id=uuid.uuid4(), kind="backup", reason="asked"))
        else:
            engine._moment_now()


if __name__ == "__main__":
    settings = load(Path(sys.argv[1]))
    found = Engine(settings, open_store(settings), FileKeys(Path(sys.argv[2])))
    threading.Thread(target=_obey, args=(found,), daemon=True).start()
    sys.exit(run(found))
