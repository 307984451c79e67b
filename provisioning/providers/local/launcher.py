"""Runs inside a Synapse environment: import Synapse while PostgreSQL is still starting, then start it.

Imports nothing of Hearth. `launcher.py <config> <go file> <seconds>`: half of Synapse's start is importing it, and that
needs neither its configuration nor its database. So it may be started early; the agent makes the go file when all is
checked and in place. Without one it ends after `seconds`. Exit codes: 3 no go file, 4 no database.
"""

from __future__ import annotations

import gc
import importlib
import os
import sys
import time

POLL = 0.005
DATABASE_SECONDS = 300.0  # a crash recovery may be long


def main() -> int:
    """Return only when something is missing; otherwise Synapse runs in this process until it ends."""
    config, go, patience = sys.argv[1], sys.argv[2], float(sys.argv[3])
    began = time.monotonic()
    gc.disable()  # nothing that is imported becomes garbage
    psycopg2, yaml = importlib.import_module("psycopg2"), importlib.import_module("yaml")
    homeserver = importlib.import_module("synapse.app.homeserver")

    gc.enable()
    imported = time.monotonic()
    while not os.path.exists(go):  # noqa: PTH110 (no more imports than Synapse's own)
        if time.monotonic() - began > patience:
            return _say(3, "The order to start did not come.")
        time.sleep(POLL)
    with open(config, encoding="utf-8") as file:  # noqa: PTH123
        args = yaml.safe_load(file)["database"]["args"]
    database = {name: value for name, value in args.items() if not name.startswith("cp_")}
    waited = time.monotonic()
    while True:
        try:
            psycopg2.connect(**database, connect_timeout=5).close()
            break
        except psycopg2.OperationalError as error:
            if time.monotonic() - waited > DATABASE_SECONDS or "authentication failed" in str(error):
                return _say(4, f"The database does not let Synapse in: {error}")
        time.sleep(POLL)
    _say(0, f"Imported in {imported - began:.2f} s, database after {time.monotonic() - waited:.2f} s more.")
    sys.argv = ["synapse", "--config-path", config]
    homeserver.main()
    return 0


def _say(code: int, text: str) -> int:
    sys.stderr.write(f"launcher: {text.strip()}\n")
    sys.stderr.flush()
    return code


if __name__ == "__main__":
    sys.exit(main())
