"""The engine's command. Imports no Django.

python -m backups.engine agent <settings.json>      backs one server up until SIGTERM
python -m backups.engine restore <request.json>     brings one back, into a new place
python -m backups.engine recover <folder>           brings one back in a pod, for a cluster's operator
python -m backups.engine settle <request.json>      once more what is done to a restored database before it is used
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import os
import signal
import sys
import threading
from pathlib import Path

from backups.engine import memory
from backups.engine.agent import Engine
from backups.engine.build import build
from backups.engine.settings import SettingsError, load
from backups.engine.state import StateError
from backups.engine.stores.base import StoreError


def main(arguments: list[str]) -> int:
    """Return 0 after an orderly end, 1 with a sentence when it can't start."""
    parser = argparse.ArgumentParser(prog="backups.engine", description="Backs a Matrix server up.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    agent = verbs.add_parser("agent", help="back one server up until SIGTERM")
    agent.add_argument("settings", type=Path)
    restoring = verbs.add_parser("restore", help="bring a server back, into a new place")
    restoring.add_argument("request", type=Path)
    settling = verbs.add_parser("settle", help="apply what is true of the living server once more to what was restored")
    settling.add_argument("request", type=Path)
    recovering = verbs.add_parser("recover", help="bring a server of a cluster back, in a pod of its own")
    recovering.add_argument("folder", type=Path)
    exporting = verbs.add_parser("export", help="give a backup out in open formats: all of it, a table, a room's files")
    exporting.add_argument("request", type=Path)
    options = parser.parse_args(arguments)
    if options.verb == "recover":
        from backups.engine.recovering.pod import main as recover  # noqa: PLC0415 (an agent never restores)

        return recover(options.folder)
    if options.verb != "agent":
        from backups.engine.restore import process  # noqa: PLC0415 (as above)

        work = {"restore": process.main, "settle": process.settle, "export": process.export}[options.verb]
        return work(options.request)
    try:
        settings = load(options.settings)
        engine = build(settings)
    except (SettingsError, StoreError) as error:
        return _refused(error)
    with contextlib.ExitStack() as stack:
        if settings.serve is not None:
            from backups.engine.serving import served  # noqa: PLC0415 (only a pod's engine serves)

            try:
                stack.enter_context(served(engine, settings.serve))
            except OSError as error:
                return _refused(SettingsError(f"The engine can't tell how it is: {error}. Nothing was backed up."))
        return run(engine)


def run(engine: Engine) -> int:
    """Run it until a signal asks to end, and return the exit code."""
    memory.keep_little()
    reader, writer = os.pipe()
    for number in (signal.SIGTERM, signal.SIGINT):
        # No lock in a handler: it may run while this thread holds that very lock.
        signal.signal(number, lambda *_: os.write(writer, b"!"))
    threading.Thread(target=_stop_when, args=(reader, engine), name="signals", daemon=True).start()
    gc.freeze()  # what was imported stays: the collector need not look at it again
    try:
        hanging = engine.run()
    except StateError as error:
        return _refused(error)
    if hanging:
        os._exit(0)  # a disk or a server that does not answer must not keep this process
    return 0


def _stop_when(reader: int, engine: Engine) -> None:
    os.read(reader, 1)
    engine.stop()


def _refused(error: Exception) -> int:
    print(error, file=sys.stderr, flush=True)  # noqa: T201 (the engine's log)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
