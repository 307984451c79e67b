"""Run Hearth in the foreground until Ctrl-C."""

from __future__ import annotations

import asyncio
import os
import signal
import sys

from django.core.exceptions import ImproperlyConfigured

from config.embedded.console import StartRefused, say
from config.embedded.state import explain
from config.embedded.supervisor import Supervisor
from config.env import read


async def supervise() -> int:
    """Start, wait for a signal, stop; return the exit code."""
    supervisor = Supervisor(read())
    asked = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, asked.set)
    start = asyncio.create_task(supervisor.start())
    signalled = asyncio.create_task(asked.wait())
    await asyncio.wait([start, signalled], return_when=asyncio.FIRST_COMPLETED)
    code = 0
    if start.done() and (error := start.exception()) is not None:
        code = 1
        say(f"\nHearth did not start. {_sentence(error, supervisor)}")
    else:
        await signalled
    start.cancel()
    await asyncio.gather(start, return_exceptions=True)
    await _stop(supervisor, asked)
    return code


async def _stop(supervisor: Supervisor, asked: asyncio.Event) -> None:
    """Stop in order; a further Ctrl-C ends the patience, and everything left is killed, not orphaned."""
    asked.clear()
    stop = asyncio.create_task(supervisor.stop())
    again = asyncio.create_task(asked.wait())
    await asyncio.wait([stop, again], return_when=asyncio.FIRST_COMPLETED)
    if not stop.done():
        say("\nStopping at once.")
        await supervisor.kill()
    again.cancel()
    await asyncio.gather(stop, again, return_exceptions=True)


def _sentence(error: BaseException, supervisor: Supervisor) -> str:
    if isinstance(error, StartRefused):
        return str(error)
    if isinstance(error, OSError):
        return explain(error, supervisor.state)
    raise error


def main() -> int:
    """Return the exit code: 0 after a stop that was asked for, 1 when the start failed, 2 for wrong settings."""
    if not sys.platform.startswith("linux"):
        say("Hearth runs on Linux only: it relies on the kernel to end processes with their parent.")
        return 2
    os.umask(0o022)
    try:
        return asyncio.run(supervise())
    except ImproperlyConfigured as error:
        say(f"Hearth did not start. {error}")
        return 2
