"""`python -m provisioning.operator`: runs the operator until it is told to stop (SIGTERM, SIGINT)."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys

import uvloop

from provisioning.operator.controller import Operator, StartError
from provisioning.operator.kube.access import AccessError
from provisioning.operator.settings import Settings, parse


async def _run(settings: Settings) -> bool:
    operator = Operator(settings)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, operator.stopping.set)
    await operator.run()
    return operator.stopping.is_set()


def main(arguments: list[str]) -> int:
    """Run, and return the exit code: 0 when it was told to stop, 1 when it must be started again."""
    settings = parse(arguments)
    logging.basicConfig(
        level=settings.log.upper(), stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    try:
        return 0 if uvloop.run(_run(settings)) else 1
    except (AccessError, StartError) as error:
        logging.getLogger(__name__).error("%s", error)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
