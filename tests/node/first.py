"""The first process of the run's process namespace: starts the command, passes signals on, and buries orphans."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

OWN = {
    Path("/run"): "0755",
    Path("/var/log"): "0755",
    Path("/var/lib/cni"): "0700",
    Path("/var/lib/kubelet"): "0755",
    Path("/dev/shm"): "1777",
}
"""Where containerd, kubelet, network plugins and databases write whatever they are told, and the folders' modes:
sockets, names of network namespaces, links to logs, addresses that were given, shared memory."""


def main(argv: list[str]) -> int:
    """Return the command's exit code. All that is left in the namespace dies when we end."""
    own_folders()
    child = os.posix_spawn(argv[0], argv, os.environ)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda got, _: os.kill(child, got))
    while True:
        pid, status = os.wait()
        if pid == child:
            return abs(os.waitstatus_to_exitcode(status))


def own_folders() -> None:
    """Put empty folders in the place of the machine's: they are seen by this run alone, and go with it."""
    for each, mode in OWN.items():
        each.mkdir(parents=True, exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"mode={mode}", "tmpfs", str(each)], check=True, timeout=20)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
