"""The first process of the run's process namespace: starts the command, passes signals on, and buries orphans."""

from __future__ import annotations

import os
import signal
import sys


def main(argv: list[str]) -> int:
    """Return the command's exit code. All that is left in the namespace dies when we end."""
    child = os.posix_spawn(argv[0], argv, os.environ)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda got, _: os.kill(child, got))
    while True:
        pid, status = os.wait()
        if pid == child:
            return abs(os.waitstatus_to_exitcode(status))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
