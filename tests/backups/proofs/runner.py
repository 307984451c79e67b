"""A worker in a process of its own that takes turns of a proof until it has come to a step, and stays there.

`python -m tests.backups.proofs.runner <proof> <agent's state folder> <step>`: says the step, then sleeps with its lease
until the test kills it.
"""

from __future__ import annotations

import sys
import time
import uuid
from pathlib import Path
from typing import Any

import django


def main(proof: str, state: str, step: str) -> None:
    """Run until killed."""
    django.setup()
    from backups.proofs import recovery, turns  # noqa: PLC0415 (only after the set-up)
    from provisioning import fleet  # noqa: PLC0415 (as above)
    from provisioning.providers.local.paths import agent_socket  # noqa: PLC0415 (as above)
    from provisioning.providers.local.provider import LocalProvider  # noqa: PLC0415 (as above)

    def hang(_: Any) -> None:
        print(step, flush=True)  # noqa: T201 (the test reads it)
        time.sleep(600)

    fleet.MAKERS["local"] = lambda: LocalProvider(agent_socket(Path(state)))
    recovery.STEPS[step] = hang
    turns.run(uuid.UUID(proof))


if __name__ == "__main__":
    main(*sys.argv[1:4])
