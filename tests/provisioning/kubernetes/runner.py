"""A worker in a process of its own, for tests that kill it.

`python -m tests.provisioning.kubernetes.runner <operation> <verb> <before|after>` carries the operation out on its real
region, says when it stands before or after the provider's `<verb>`, and sleeps there until the test kills it.
"""

from __future__ import annotations

import sys
import time
import uuid
from typing import Any

import django


def main(operation: str, verb: str, when: str) -> None:
    """Run until killed."""
    django.setup()
    from provisioning import engine  # noqa: PLC0415 (only after the set-up)
    from provisioning.providers.kubernetes.provider import KubernetesProvider  # noqa: PLC0415 (as above)

    found = getattr(KubernetesProvider, verb)

    def hang(*words: Any, **options: Any) -> None:
        if when == "after":
            found(*words, **options)
        print(verb, flush=True)  # noqa: T201 (the test reads it)
        time.sleep(600)

    setattr(KubernetesProvider, verb, hang)
    engine.run(uuid.UUID(operation))


if __name__ == "__main__":
    main(*sys.argv[1:4])
