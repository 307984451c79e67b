"""A restore asks the living server's database itself, where nobody else may carry what it says. No Django.

In a cluster names of accounts and sessions of a customer have no business in the API server; so Hearth only says where
that database is (`Since.from`). It proves itself by the password that both know: SCRAM binds the proof to the TLS
channel, so whoever listens in its place can't.
"""

from __future__ import annotations

import time
from typing import Any

import msgspec
import psycopg
from msgspec.structs import replace

from backups.engine.restore.request import Living, Settle, Since

PATIENCE = 60.0
"""Seconds for which a database that does not answer is asked again."""
CONNECT, PAUSE = 10, 2.0
TRUSTED: dict[str, Any] = {"sslmode": "require", "channel_binding": "require"}
LIVELY: dict[str, Any] = {
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
}
"""Who is gone in the middle of a query is noticed within half a minute: kernels wait for hours by themselves."""
LONGEST = "-c statement_timeout=60000"
"""Milliseconds for which it may work on an answer."""
PASSWORDS = ("28P01", "28000")
"""SQLSTATE of a password or role that is refused: asking again changes nothing."""


def asked(wanted: Settle) -> tuple[Settle, bool | None]:
    """Return what is to be settled with what the living server says of now, and whether it could be asked.

    None: nobody said where it is. Who can't be asked can't say which sessions were ended, so all of them are.
    """
    origin = wanted.since.origin
    if origin is None:
        return wanted, None
    found = _ask(origin)
    if found is None:
        return replace(wanted, since=Since(), sessions="all"), False
    if wanted.since.streams_alone:
        return replace(wanted, since=Since(sequences=found.sequences)), True
    if not wanted.older:
        return replace(wanted, since=found), True
    lock = (*wanted.lock, *(found.locked or ()))
    return replace(wanted, since=replace(found, locked=None, admins=None), lock=lock), True


def _ask(origin: Living) -> Since | None:
    end = time.monotonic() + PATIENCE
    while True:
        try:
            with psycopg.connect(
                host=origin.host,
                port=origin.port,
                user=origin.user,
                password=origin.password,
                dbname=origin.database,
                connect_timeout=CONNECT,
                autocommit=True,
                options=LONGEST,
                **LIVELY,
                **TRUSTED,
            ) as connection:
                row = connection.execute(origin.query.encode()).fetchone()
                return msgspec.convert(row[0] if row else None, Since)
        except psycopg.OperationalError as error:
            if error.sqlstate in PASSWORDS or time.monotonic() + PAUSE > end:
                return None
            time.sleep(PAUSE)
        except (psycopg.Error, msgspec.ValidationError):  # a database without Synapse's tables, or another Synapse's
            return None
