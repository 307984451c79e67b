"""`make smoke`: the whole way of a new user against a fresh state, and what it takes. The last line is JSON.

A server's start is measured five times, each beside the bare floor in the same run, and the medians are compared:
`ratio` = `server_ready_s` / `floor_s`. Environments are warm, as they are after the first start.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import psutil

from provisioning.providers.local import postgres
from provisioning.providers.local.environments import environment_python
from tenants.releases import newest
from tests.bench.floor import bring_up, free_ports
from tests.stack import ENVIRONMENTS, Stack, alive
from tests.way import Person, talk

ROUNDS = 5
OWN_PARTS = ("config.embedded", "uvicorn", "celery", "config.beat", "local.agent")


def main() -> None:
    """Walk the way, print the figures, and exit with 1 if anything is left behind."""
    folder = Path(tempfile.mkdtemp(prefix="hearth-smoke-", dir="/tmp"))
    folder.chmod(0o711)
    stack = Stack(folder / "state", free_ports(1)[0])
    try:
        figures = walk(stack)
    finally:
        if stack.process is not None and stack.process.poll() is None:
            stack.stop()
        shutil.rmtree(folder, ignore_errors=True)
    sys.stdout.write(json.dumps(figures) + "\n")
    sys.exit(0 if figures["ok"] else 1)


def walk(stack: Stack) -> dict[str, object]:
    """Return the figures: seconds, milliseconds, megabytes."""
    stack.start()
    stack.stop()
    restart_s = stack.start()
    alice = Person(stack, "alice@example.org")
    began = time.perf_counter()
    alice.sign_up()
    organisation = alice.create_organisation("Alice and friends", "beacon")
    sign_up_s = time.perf_counter() - began
    floors, readies, servers = [], [], []
    python = environment_python(ENVIRONMENTS, newest().version)
    bring_up(postgres.BIN, python)  # both sides start with warm disks
    for number in range(ROUNDS):
        floors.append(bring_up(postgres.BIN, python))
        began = time.perf_counter()
        servers.append(alice.create_server(organisation, f"alice{number}"))
        alice.wait_for(servers[-1])
        readies.append(time.perf_counter() - began)
        say(f"round {number + 1}: floor {floors[-1]:.2f} s, Hearth {readies[-1]:.2f} s")
    trip = talk(alice.connection(servers[0]))
    memory = own_memory(stack)
    family = stack.family()
    stop_s = stack.stop()
    left = alive(family)
    return {
        "ok": not left,
        "start_s": round(restart_s, 2),
        "sign_up_s": round(sign_up_s, 2),
        "server_ready_s": round(median(readies), 2),
        "floor_s": round(median(floors), 2),
        "ratio": round(median(readies) / median(floors), 2),
        "message_round_trip_ms": round(trip, 1),
        "rss_mb": round(sum(memory.values())),
        "rss_by_part_mb": {part: round(size) for part, size in memory.items()},
        "server_ready_all_s": [round(one, 2) for one in readies],
        "floor_all_s": [round(one, 2) for one in floors],
        "stop_s": round(stop_s, 2),
        "left_behind": [str(one) for one in left],
    }


def own_memory(stack: Stack) -> dict[str, float]:
    """Return the resident megabytes of each process that runs Hearth's own code."""
    sizes: dict[str, float] = {}
    for process in stack.family():
        with contextlib.suppress(psutil.NoSuchProcess):
            command = " ".join(process.cmdline())
            part = next((part for part in OWN_PARTS if part in command), "")
            if part and "python" in Path(process.exe()).name:
                sizes[part] = sizes.get(part, 0) + process.memory_info().rss / 1e6
    return sizes


def say(line: str) -> None:
    sys.stderr.write(f"{line} (load {os.getloadavg()[0]:.1f}, {len(psutil.pids())} processes)\n")


if __name__ == "__main__":
    main()
