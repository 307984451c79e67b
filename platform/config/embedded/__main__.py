"""`python -m config.embedded`: what `make run` becomes."""

from __future__ import annotations

import importlib
import signal
import sys

if __name__ == "__main__":
    # A Ctrl-C while modules are still being loaded ends the process, and shows no traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    sys.exit(importlib.import_module("config.embedded.run").main())
