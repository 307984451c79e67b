"""`python -m provisioning.providers.local.agent --state DIR --environments DIR`: runs until SIGTERM or SIGINT."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import os
import signal
import sys
from pathlib import Path

from observability import openfiles
from provisioning.providers.local.agent.fleet import Fleet
from provisioning.providers.local.agent.machine import Machine
from provisioning.providers.local.agent.renewal import Renewals
from provisioning.providers.local.agent.rpc import Socket
from provisioning.providers.local.paths import AGENT_SOCKET, RuntimeFolderError


async def serve(machine: Machine) -> None:
    """Serve until a signal asks to end, then stop every server."""
    end = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end.set)
    fleet = Fleet(machine)
    requests = Socket(fleet)
    await fleet.boot()
    await requests.open(machine.state)
    keepers = [asyncio.create_task(requests.keep(machine.state)), asyncio.create_task(Renewals(fleet.servers).keep())]
    _say(f"The agent keeps {len(fleet.servers)} servers. {machine.isolation}".strip())
    try:
        await end.wait()
    finally:
        for keeper in keepers:
            keeper.cancel()
        await requests.close()
        await fleet.shut_down()
        clear(machine.runtime, fleet)


def clear(runtime: Path, fleet: Fleet) -> None:
    """Take our own things out of the sockets' folder, and the folder itself if nobody else has something there."""
    with contextlib.suppress(OSError):
        (runtime / AGENT_SOCKET).unlink(missing_ok=True)
    for server in fleet.servers.values():
        with contextlib.suppress(OSError):
            server.folder.sockets.rmdir()
    with contextlib.suppress(OSError):
        runtime.rmdir()


def main() -> int:
    """Return 0 after an orderly end, 1 with a sentence if it can't start."""
    parser = argparse.ArgumentParser(description="Keeps the homeservers of this machine.")
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--environments", type=Path, default=None)
    options = parser.parse_args()
    # Environments must be readable by the servers' users, whatever the shell's umask; what is secret sets its own mode.
    os.umask(0o022)
    openfiles.raise_limit()
    try:
        state = options.state.resolve()
        machine = Machine.survey(state, (options.environments or state / "environments").resolve())
        lock = (machine.servers / ".lock").open("a")
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        machine = machine.passable()
    except BlockingIOError:
        _say(f"Another agent keeps the servers in {options.state}. Nothing was changed. Stop that one first.")
        return 1
    except (OSError, RuntimeFolderError) as error:
        _say(f"The agent can't use {options.state}: {error}. Nothing was changed.")
        return 1
    with lock:
        asyncio.run(serve(machine))
    return 0


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)  # noqa: T201 (the agent's log)


if __name__ == "__main__":
    sys.exit(main())
