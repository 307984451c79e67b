"""What the engine asks the database. Short sessions: a server of a few people should not hold a backend for us.

The role needs REPLICATION (slots, both tools) and EXECUTE on `pg_switch_wal()`; nothing of the customer's data is read
by it. It connects to `postgres`, not to Synapse's database, so no object that a customer can make is ever called.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import psycopg
from psycopg import Connection

from backups.engine.database import lsn
from backups.engine.names import SEGMENT_SIZE
from backups.engine.settings import Database
from provisioning.providers.local.processes import Command

APPLICATION = "hearth-backup"
STATEMENT_SECONDS = 30
MARKER = "hearth"


class DatabaseError(Exception):
    """The database does not answer, or refuses. The text is for a person."""

    code = "DatabaseDown"


@dataclass(frozen=True)
class Facts:
    """What a database is."""

    system: str
    timeline: int
    version: int
    """As `server_version_num` says."""


@dataclass(frozen=True)
class Slot:
    """Our replication slot: what the server keeps for us."""

    status: str
    """`reserved`, `extended`, `unreserved`, or `lost`: WAL that we need is gone."""
    restart: int | None
    active: bool


@dataclass(frozen=True)
class Now:
    """The database at one moment."""

    at: datetime
    flushed: int
    """All that was committed before `at` is before this LSN."""
    transactions: int
    """The next transaction's number: what changed nothing has none."""


class Session:
    """One connection, of the thread that opened it."""

    def __init__(self, connection: Connection[tuple[Any, ...]], slot: str) -> None:
        self._connection = connection
        self._slot = slot

    def facts(self) -> Facts:
        """Return what it is. Raises `DatabaseError` where WAL segments have another size than 16 MiB."""
        found = self._row(
            "SELECT (SELECT system_identifier::text FROM pg_control_system()),"
            " pg_walfile_name(pg_current_wal_flush_lsn()), current_setting('server_version_num')::int,"
            " pg_size_bytes(current_setting('wal_segment_size'))"
        )
        if found[3] != SEGMENT_SIZE:
            raise DatabaseError(f"Its WAL segments have {found[3]} bytes; only those of 16 MiB can be backed up.")
        return Facts(found[0], int(found[1][:8], 16), found[2])

    def slot(self) -> Slot | None:
        """Return our slot, or None if there is none."""
        found = self._connection.execute(
            "SELECT wal_status, restart_lsn::text, active FROM pg_replication_slots WHERE slot_name = %s", [self._slot]
        ).fetchone()
        if found is None:
            return None
        return Slot(found[0] or "lost", lsn.number(found[1]) if found[1] else None, found[2])

    def make_slot(self) -> int:
        """Make our slot anew and return the LSN from which on the server keeps WAL for us."""
        if self.slot() is not None:
            self._row("SELECT pg_drop_replication_slot(%s)", self._slot)
        return lsn.number(
            self._row("SELECT lsn::text FROM pg_create_physical_replication_slot(%s, true)", self._slot)[0]
        )

    def advance_slot(self, place: int) -> None:
        """Tell the server that all WAL before `place` is safe. Only while nobody receives."""
        slot = self.slot()
        if slot is not None and not slot.active and slot.restart is not None and slot.restart < place:
            self._row("SELECT 1 FROM pg_replication_slot_advance(%s, %s::pg_lsn)", self._slot, lsn.text(place))

    def drop_slot(self) -> None:
        """Let the server remove what it kept for us."""
        if self.slot() is not None:
            self._row("SELECT pg_drop_replication_slot(%s)", self._slot)

    def written(self) -> int:
        """Return the LSN up to which the receiver has written the stream to its files; 0 when it is not connected."""
        found = self._connection.execute(
            "SELECT write_lsn::text FROM pg_stat_replication JOIN pg_replication_slots ON active_pid = pid"
            " WHERE slot_name = %s",
            [self._slot],
        ).fetchone()
        return lsn.number(found[0]) if found is not None and found[0] is not None else 0

    def now(self) -> Now:
        """Return its time, and then how far its log reaches."""
        at = self._row("SELECT clock_timestamp()")[0]
        found = self._row("SELECT pg_current_wal_flush_lsn()::text, pg_snapshot_xmax(pg_current_snapshot())::text")
        return Now(at, lsn.number(found[0]), int(found[1]))

    def mark(self) -> int:
        """Commit a transaction that changes nothing, and return an LSN behind it.

        Recovery to a time stops at the first commit after it; where nothing is committed any more it would go on for
        ever. So there is one of ours behind each moment that is stored.
        """
        self._row("SELECT pg_logical_emit_message(true, %s, '')", MARKER)
        return lsn.number(self._row("SELECT pg_current_wal_flush_lsn()::text")[0])

    def switch(self) -> None:
        """End the present WAL segment, where the role may: then it is stored as a whole at once."""
        if self._row("SELECT has_function_privilege('pg_switch_wal()', 'execute')")[0]:
            self._row("SELECT pg_switch_wal()")

    def _row(self, query: str, *values: Any) -> tuple[Any, ...]:
        found = self._connection.execute(query.encode(), values or None).fetchone()
        if found is None:
            raise DatabaseError("It gave no answer where there must be one.")
        return found


class Postgres:
    """One server's database, as the engine reaches it."""

    def __init__(self, settings: Database) -> None:
        self.settings = settings

    @contextmanager
    def session(self) -> Iterator[Session]:
        """Connect for a few questions. Raises `DatabaseError` for whatever goes wrong in between."""
        try:
            with psycopg.connect(
                **self._parameters(),
                autocommit=True,
                connect_timeout=5,
                application_name=APPLICATION,
                client_encoding="utf8",
                options=f"-c statement_timeout={STATEMENT_SECONDS}s -c timezone=UTC -c search_path=pg_catalog",
            ) as connection:
                connection.prepare_threshold = None
                yield Session(connection, self.settings.slot)
        except psycopg.Error as error:
            raise DatabaseError(f"The database does not do what it is asked: {str(error).strip()}") from None
        except OSError as error:
            raise DatabaseError(f"The database's password can't be read: {error.strerror}.") from None

    def environment(self) -> Mapping[str, str]:
        """Return the environment in which PostgreSQL's tools sign in. It holds the password."""
        found = {"LC_ALL": "C", "TZ": "UTC", "PATH": "/usr/bin:/bin", "PGCONNECT_TIMEOUT": "10"}
        found |= {"PGAPPNAME": APPLICATION, "PGHOST": self.settings.host, "PGPORT": str(self.settings.port)}
        found |= {"PGUSER": self.settings.user}
        found |= {"PGSSLMODE": self.settings.sslmode} if self.settings.sslmode else {}
        found |= {"PGSSLROOTCERT": self.settings.sslrootcert} if self.settings.sslrootcert else {}
        if password := self._password():
            found["PGPASSWORD"] = password
        return found

    def _parameters(self) -> dict[str, Any]:
        it = self.settings
        found: dict[str, Any] = {"host": it.host, "port": it.port, "user": it.user, "dbname": it.name}
        extra = {"password": self._password(), "sslmode": it.sslmode, "sslrootcert": it.sslrootcert}
        return found | {name: value for name, value in extra.items() if value}

    def _password(self) -> str:
        if not self.settings.password_file:
            return ""
        return Path(self.settings.password_file).read_text(encoding="utf-8").strip()


def tool(name: str, words: tuple[str, ...], postgres: Postgres, programs: str, **identity: Any) -> Command:
    """Return the command of one of PostgreSQL's tools, as the user who owns the database."""
    program = str(Path(programs) / name) if programs else name
    return Command(name, (program, *words), Path("/"), postgres.environment(), **identity)
