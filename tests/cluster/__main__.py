"""`make cluster`: a test cluster in the foreground until Ctrl-C, for development."""

from __future__ import annotations

import argparse
import signal
import sys
import threading

from tests.cluster import definitions, tools
from tests.cluster.launch import Cluster


def main() -> int:
    """Run a cluster; return the exit code."""
    parser = argparse.ArgumentParser(prog="make cluster", description=__doc__)
    parser.add_argument("--nodes", type=int, default=3, help="nodes that kwok plays (default: 3; 0: no kwok)")
    arguments = parser.parse_args()
    try:
        tools.ensure([name for name in tools.CLUSTER if arguments.nodes or name != "kwok"], say=say)
        definitions.ensure(say=say)
    except tools.Missing as missing:
        say(f"No cluster: {missing}")
        return 1
    over = threading.Event()
    for end in (signal.SIGINT, signal.SIGTERM):
        signal.signal(end, lambda *_: over.set())
    with Cluster(nodes=arguments.nodes) as cluster:
        say(f"The cluster is ready at {cluster.url}. Ctrl-C ends it and removes its data.")
        say(f"export KUBECONFIG={cluster.kubeconfig}")
        over.wait()
    return 0


def say(text: str) -> None:
    """Print a line at once, also into a pipe."""
    print(text, flush=True)  # noqa: T201 (this is a command)


if __name__ == "__main__":
    sys.exit(main())
