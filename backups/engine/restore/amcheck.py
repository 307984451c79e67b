"""PostgreSQL's own look at a restored database's structure: `pg_amcheck`, where this installation has it. No Django.

It reads every table and index: what a page holds, the order of each index, and with `--heapallindexed` whether each
row is in its indexes. https://www.postgresql.org/docs/current/app-pgamcheck.html

For a throw-away instance alone: it makes the extension `amcheck` in the database.
"""

from __future__ import annotations

import subprocess
import threading
from pathlib import Path

import psycopg

from backups.engine.restore import replay
from backups.engine.restore.errors import Cancelled, RestoreError
from backups.engine.settings import Tools
from provisioning.providers.local.processes import spawn_argv

JOBS, SHOWN = 2, 5
_TURN = 0.2


def available(connection: psycopg.Connection[tuple[object, ...]]) -> bool:
    """Return whether the extension can be made in this database."""
    found = connection.execute("SELECT 1 FROM pg_available_extensions WHERE name = 'amcheck'").fetchone()
    return found is not None


def look(sockets: Path, database: str, superuser: str, tools: Tools, stop: threading.Event) -> bool:
    """Look at all of a database. False: this installation lacks the means. Raises `RestoreError` (`Corrupt`)."""
    with psycopg.connect(host=str(sockets), user=superuser, dbname=database, autocommit=True) as connection:
        if not available(connection):
            return False
    where = ("-h", str(sockets), "-U", superuser, "-d", database)
    words = (*where, "--install-missing", "--heapallindexed", "-j", str(JOBS))
    command = replay.command_of("pg_amcheck", words, tools)
    try:
        process = subprocess.Popen(
            spawn_argv(command),
            cwd="/",
            env=dict(command.env),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
    except FileNotFoundError:
        return False
    with process:
        told = _awaited(process, stop)
    if process.returncode:
        text = "; ".join(line.strip() for line in told.splitlines()[:SHOWN])
        raise RestoreError(
            f"The restored database is not sound. pg_amcheck says: {text}. Nothing that ran before was touched. Take "
            "another restore point, and look at the living server's database too: it may have been so there.",
            code="Corrupt",
        )
    return True


def _awaited(process: subprocess.Popen[str], stop: threading.Event) -> str:
    """Return what it says; end it when the restore is to stop."""
    while True:
        try:
            told, _ = process.communicate(timeout=_TURN)
        except subprocess.TimeoutExpired:
            if stop.is_set():
                process.kill()
                raise Cancelled from None
        else:
            return told
