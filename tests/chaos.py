"""Kill the worker in the middle of making a server, and see that nothing is lost, doubled or orphaned.

`make chaos` kills at every step of `create` and at 30 random moments; `make test` at one place.
"""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

import psutil
import psycopg

from tests.bench.floor import free_ports
from tests.stack import Stack
from tests.way import Connection, Person, talk

RANDOM_KILLS = 30
LONGEST = 3.0
"""Seconds after the order in which a random kill falls: a create takes about this long."""


def database_url(stack: Stack) -> str:
    """Return the address of the stack's own PostgreSQL, read from its web server's environment."""
    return stack.part("uvicorn").environ()["DATABASE_URL"]


def kill_worker(stack: Stack) -> None:
    """kill -9; the supervisor starts another one."""
    worker = stack.part("celery worker")
    worker.kill()
    psutil.wait_procs([worker], timeout=60)


def kill_during_step(stack: Stack, server_id: str, step: str, limit: float = 60) -> None:
    """Kill the worker as soon as the server's `create` is in `step`."""
    query = """
        SELECT s.state FROM provisioning_operationstep s JOIN provisioning_operation o ON o.id = s.operation_id
        WHERE o.server_id = %s AND o.kind = 'create' AND s.name = %s
    """
    end = time.monotonic() + limit
    with psycopg.connect(database_url(stack), autocommit=True) as connection:
        while time.monotonic() < end:
            row = connection.execute(query, [server_id, step]).fetchone()
            if row and row[0] != "waiting":
                return kill_worker(stack)
            time.sleep(0.002)
    raise AssertionError(f"The operation never came to “{step}”.")


def check_whole(stack: Stack, person: Person, path: str, connection: Connection | None = None) -> None:
    """One server, one operation that ended well, one Synapse and one PostgreSQL of it, and it works."""
    person.wait_for(path)
    server_id = path.split("/")[4]
    with psycopg.connect(database_url(stack), autocommit=True) as database:
        rows = database.execute(
            "SELECT kind, state FROM provisioning_operation WHERE server_id = %s", [server_id]
        ).fetchall()
    assert rows == [("create", "succeeded")], rows
    assert len(synapses(server_id)) == 1, synapses(server_id)
    talk(connection or person.connection(path))


def synapses(server_id: str) -> list[list[str]]:
    """Return the command lines of every Synapse of this server on the whole machine, orphans too."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            command = process.cmdline()
            if f"{server_id}/config/homeserver.yaml" in " ".join(command) and "python" in Path(process.exe()).name:
                found.append(command)
    return found


def create_steps(stack: Stack) -> list[str]:
    """Return the names of the steps of `create`, as the database of a stack that made one has them."""
    with psycopg.connect(database_url(stack), autocommit=True) as connection:
        rows = connection.execute(
            "SELECT DISTINCT s.name, s.position FROM provisioning_operationstep s "
            "JOIN provisioning_operation o ON o.id = s.operation_id WHERE o.kind = 'create' ORDER BY s.position"
        ).fetchall()
    return [row[0] for row in rows]


def main() -> None:
    """Kill at each step, then at random; the last line is JSON."""
    folder = Path(tempfile.mkdtemp(prefix="hearth-chaos-", dir="/tmp"))
    folder.chmod(0o711)
    stack = Stack(folder / "state", free_ports(1)[0], {"HEARTH_DELETE_GRACE_HOURS": "0"})
    seed = random.SystemRandom().randrange(10**6)
    try:
        stack.start()
        kills = kill_everywhere(stack, random.Random(seed))
    finally:
        if stack.process is not None:
            stack.stop()
        shutil.rmtree(folder, ignore_errors=True)
    sys.stdout.write(json.dumps({"ok": True, "kills": kills, "seed": seed}) + "\n")


def kill_everywhere(stack: Stack, chance: random.Random) -> int:
    """Make one server in peace, then one for each kill; return the number of kills."""
    alice = Person(stack, "alice@example.org")
    alice.sign_up()
    organisation = alice.create_organisation("Chaos", "beacon")
    one_kill(stack, alice, organisation, "peace")
    steps = create_steps(stack)
    for step in steps:
        one_kill(stack, alice, organisation, f"at-{step}", step=step)
    for number in range(RANDOM_KILLS):
        one_kill(stack, alice, organisation, f"random{number}", after=chance.uniform(0, LONGEST))
    return len(steps) + RANDOM_KILLS


def one_kill(
    stack: Stack, person: Person, organisation: str, name: str, *, step: str = "", after: float | None = None
) -> None:
    """Make a server, kill the worker in `step` or some seconds after the order, check everything, and remove it."""
    path = person.create_server(organisation, name)
    if step:
        kill_during_step(stack, path.split("/")[4], step)
    elif after is not None:
        time.sleep(after)
        kill_worker(stack)
    began = time.monotonic()
    check_whole(stack, person, path)
    sys.stderr.write(f"{name}: whole {time.monotonic() - began:.1f} s after the kill\n")
    person.delete_server(path, f"{name}.hearth.localhost")
    person.wait_for_end(path)
    assert not synapses(path.split("/")[4])


if __name__ == "__main__":
    main()
