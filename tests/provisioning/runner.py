"""A worker in a process of its own, for tests that kill it.

`python -m tests.provisioning.runner <operation> <url> <step> <request>` carries the operation out with a scripted
provider whose agent asks `<request>` to be signed, says when it has come to `<step>`, and sleeps there until the test
kills it.
"""

from __future__ import annotations

import sys
import time
import uuid

import django


def main(operation: str, url: str, step: str, request: str) -> None:
    """Run until killed."""
    django.setup()
    from provisioning import engine, fleet  # noqa: PLC0415 (only after the set-up)
    from tests.provisioning.fakes import ScriptedProvider  # noqa: PLC0415 (as above)

    def hang() -> None:
        print(step, flush=True)  # noqa: T201 (the test reads it)
        time.sleep(600)

    provider = ScriptedProvider(url=url, faults={step: [hang]}, request=request.encode())
    fleet.MAKERS["local"] = lambda: provider
    engine.run(uuid.UUID(operation))


if __name__ == "__main__":
    main(*sys.argv[1:5])
