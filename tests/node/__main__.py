"""`make e2e-node`: MatrixServers on a real node, from the first pod to nothing left. The last line is JSON.

Outside of the run's namespaces: what the machine can do, and what has to be built. Inside: `tests.node.scenario`.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from provisioning.operator.image import context
from tests.cluster import definitions, tools
from tests.node import images, namespaces, probe
from tests.node.versions import VERSIONS
from tests.operator import render_helper

ROOT = Path(__file__).resolve().parents[2]


def main() -> int:
    """Return the exit code. Without what a node needs the run is left out, which is a failure with CI=true."""
    say("What this machine can do for a real node:")
    if faults := probe.faults(say=say):
        say(f"\n*** LEFT OUT: everything on a real node. {' '.join(faults)}\n")
        return int(os.environ.get("CI") == "true" and installable(faults))
    began = time.monotonic()
    try:
        render_helper.ensure(say)
        tools.ensure((*tools.TESTS, *tools.NODE, *tools.STORES), say=say)
        definitions.ensure(say=say)
        archives = images.ensure(VERSIONS, say=say)
    except (tools.Missing, images.Failed, context.Failed) as missing:
        say(f"\n*** The real node can't be had: {missing}\n")
        return 1
    say(f"Programs and images are there after {time.monotonic() - began:.0f} s.")
    with namespaces.folder() as place:
        environment = {name: value for name, value in os.environ.items() if not unwanted(name)}
        environment |= {"PYTHONPATH": f"{ROOT}:{ROOT / 'platform'}", "TMPDIR": str(place)}
        words = [f"{name}={path}" for name, path in archives.items()]
        argv = (sys.executable, "-m", "tests.node.scenario", str(place), *words)
        return namespaces.run(argv, place, environment)


def unwanted(name: str) -> bool:
    """Tell whether a variable would lead elsewhere: to another Hearth or cluster, or through a proxy."""
    return name.startswith(("HEARTH_", "KUBECONFIG")) or name.lower().endswith("_proxy")


def installable(faults: list[str]) -> bool:
    """Tell whether nothing is missing but packages, which is no excuse. Without them the network can't be tried."""
    names = {each.partition(":")[0] for each in faults}
    return "programs" in names and names <= {"programs", probe.OF_PROGRAMS}


def say(text: str) -> None:
    """Print a line at once, also into a pipe."""
    print(text, flush=True)  # noqa: T201 (this is a command)


if __name__ == "__main__":
    sys.exit(main())
