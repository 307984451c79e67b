"""The operator with a fault put into it: `python -m tests.operator.wounded FAULT OPTIONS...`.

Nothing that an API server or a network does ends a watch or holds it up for good (test_faults.py). What the liveness
endpoint is there for has to be put in by hand: once the watch of ConfigMaps has expired, it ends, or hangs.
"""

from __future__ import annotations

import asyncio
import sys

from provisioning.operator.__main__ import main
from provisioning.operator.kube import reflector
from provisioning.operator.kube.reflector import Reflector
from provisioning.operator.watching import Watching

once = Reflector._once


def _expired(watch: Reflector) -> bool:
    return watch.kind.name == "ConfigMap" and watch.synced.is_set() and not watch._version


async def _end(watch: Reflector) -> None:
    if _expired(watch):
        raise asyncio.CancelledError
    await once(watch)


async def _hang(watch: Reflector) -> None:
    if _expired(watch):
        await asyncio.Event().wait()
    await once(watch)


async def _nothing(_watching: Watching) -> None:
    """Return at once."""


def wound(fault: str) -> None:
    """Put the fault in."""
    if fault == "deaf":
        setattr(Watching, "listen", _nothing)  # noqa: B010
    else:
        setattr(Reflector, "_once", {"ends": _end, "hangs": _hang}[fault])  # noqa: B010
    if fault == "hangs":
        # Healthy watches open again every second then, and a hung one shows after a few.
        reflector.SILENCE, reflector.HUNG = 1.0, 6.0


if __name__ == "__main__":
    wound(sys.argv[1])
    sys.exit(main(sys.argv[2:]))
