"""Synapse's database after it went back in time: what others may have seen since then is never told again. No Django.

**Streams.** A client's sync token says how far it has read each stream. Were a stream's numbers given a second time,
whoever has a later token would never be told of what gets them. So each sequence goes past all that can have been
given since: past where the living server's is, if that could be asked, and by a margin beside. No stream of one server
gets 10,000 numbers in a second, each of them being a row written; so the margin is that for each second since the
restored moment, and a million for clocks and for what was under way. That a bigint bears
for 29 million years. `stream_positions` follows: a worker reads from there how far a stream is, and Synapse refuses to
start where it is ahead of its sequence. (Synapse's storage/util/id_generators.py and sequence.py.)
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
from psycopg import Cursor, sql

from backups.engine.restore.errors import RestoreError
from backups.engine.restore.living import LIVELY, asked
from backups.engine.restore.replay import Server
from backups.engine.restore.request import Request, Settle

SCRIPT = Path(__file__).with_name("settle.sql")
A_SECOND, MARGIN = 10_000, 1_000_000
INNER = {"state_group_id_seq", "event_auth_chain_id"}
"""Sequences whose numbers nobody but the database itself ever sees."""
STREAMS = {
    "account_data": "account_data_sequence",
    "backfill": "events_backfill_stream_seq",
    "caches": "cache_invalidation_stream_seq",
    "device_lists_stream": "device_lists_sequence",
    "e2e_cross_signing_keys": "e2e_cross_signing_keys_sequence",
    "events": "events_stream_seq",
    "presence_stream": "presence_stream_sequence",
    "profile_updates": "profile_updates_sequence",
    "push_rules_stream": "push_rules_stream_sequence",
    "pushers": "pushers_sequence",
    "quarantined_media_changes": "quarantined_media_id_seq",
    "receipts": "receipts_sequence",
    "sticky_events": "sticky_events_sequence",
    "thread_subscriptions": "thread_subscriptions_sequence",
    "to_device": "device_inbox_sequence",
    "un_partial_stated_event_stream": "un_partial_stated_event_stream_sequence",
    "un_partial_stated_room_stream": "un_partial_stated_room_stream_sequence",
}
"""By the stream's name in `stream_positions`. One that is not here, of a later Synapse, is moved too; its position
stays behind, which is allowed."""
BACKWARDS = {"backfill"}
"""Their positions are negative."""


@dataclass(frozen=True)
class Settled:
    """What was done."""

    moved: dict[str, int]
    """Where each sequence is now."""
    ended_sessions: int
    locked: int
    deactivated: int
    one_time_keys: int
    asked: bool | None = None
    """Whether the living server's database could be asked; None where nobody was to ask it."""

    @property
    def told(self) -> dict[str, Any]:
        """It as evidence."""
        return {
            **({} if self.asked is None else {"asked": self.asked}),
            "sequences": self.moved,
            "ended_sessions": self.ended_sessions,
            "locked": self.locked,
            "deactivated": self.deactivated,
            "one_time_keys": self.one_time_keys,
        }


@contextlib.contextmanager
def connected(server: Server, request: Request, wanted: Settle) -> Iterator[psycopg.Connection[tuple[object, ...]]]:
    """Give a connection to the database of a private PostgreSQL, or raise `RestoreError`."""
    try:
        with psycopg.connect(
            host=str(server.sockets), user=request.superuser, dbname=wanted.database, autocommit=True
        ) as connection:
            yield connection
    except psycopg.OperationalError as error:
        raise RestoreError(
            f"The restored database does not take connections: {str(error).strip()} Nothing that ran before was "
            "touched.",
            code="SettleFailed",
        ) from None


def sequences(connection: psycopg.Connection[tuple[object, ...]]) -> dict[str, int]:
    """Return how far the sequences are that others see numbers of; 0: never used."""
    found = connection.execute(
        "SELECT sequencename, coalesce(last_value, 0) FROM pg_sequences WHERE data_type = 'bigint'::regtype"
    ).fetchall()
    return {str(name): int(str(value)) for name, value in found if name not in INNER}


def settle(
    connection: psycopg.Connection[tuple[object, ...]],
    wanted: Settle,
    *,
    before: dict[str, int],
    moment: datetime,
    now: datetime,
) -> Settled:
    """Do all of it in one transaction. `before` is what `sequences` gave before the first call; again is right.

    Where `wanted` says whom to ask of now, that is asked first. Raises `RestoreError` (`SettleFailed`), and nothing was
    changed then.
    """
    wanted, answered = asked(wanted)
    try:
        with connection.transaction(), connection.cursor() as cursor:
            if not _is_synapse(cursor):
                return Settled({}, 0, 0, 0, 0, answered)
            _fill(cursor, wanted)
            counts = _count(cursor)
            moved = _move(cursor, wanted, before, margin(moment, now))
            cursor.execute(SCRIPT.read_bytes())
            _tell_of_devices(cursor)
            _follow(cursor)
            after = _count(cursor)
        _set_passwords(connection, wanted.passwords)
    except psycopg.Error as error:
        raise RestoreError(
            f"The restored database could not be made ready for Synapse: {str(error).strip()}. Nothing was started, "
            "and nothing that ran before was touched.",
            code="SettleFailed",
            retry=isinstance(error, psycopg.OperationalError),  # such as a connection that is lost in the middle
        ) from None
    return Settled(
        moved=moved,
        ended_sessions=counts["sessions"] - after["sessions"],
        locked=after["locked"],
        deactivated=after["deactivated"] - counts["deactivated"],
        one_time_keys=counts["keys"],
        asked=answered,
    )


def settle_at(address: Mapping[str, Any], wanted: Settle, moment: datetime | None = None) -> dict[str, Any]:
    """Settle a database that runs, over the network, as the owner of its tables; return what was done, as evidence.

    `address` is what `psycopg.connect` takes. Again is right: the sequences go on from where they are. `moment`: of
    when the data are, without which only the living server's own numbers count. Raises `RestoreError`.
    """
    now = datetime.now(UTC)
    try:
        with psycopg.connect(**{**LIVELY, **address, "autocommit": True}) as connection:
            return settle(connection, wanted, before=sequences(connection), moment=moment or now, now=now).told
    except psycopg.OperationalError as error:
        raise RestoreError(
            f"The restored database does not take connections: {str(error).strip()} Nothing that ran before was "
            "touched.",
            code="SettleFailed",
            retry=True,
        ) from None


def margin(moment: datetime, now: datetime) -> int:
    """Return how many numbers of a stream may have been given since `moment`, at most."""
    return MARGIN + A_SECOND * max(int((now - moment).total_seconds()), 0)


def _is_synapse(cursor: Cursor[tuple[object, ...]]) -> bool:
    """Return whether Synapse ever started on this database."""
    cursor.execute("SELECT to_regclass('public.schema_version') IS NOT NULL")
    return bool((cursor.fetchone() or (False,))[0])


def _fill(cursor: Cursor[tuple[object, ...]], wanted: Settle) -> None:
    since = wanted.since
    known = [
        part for part in ("locked", "deactivated", "erased", "admins", "devices") if getattr(since, part) is not None
    ]
    if wanted.sessions == "all":
        known = [*(part for part in known), "no-sessions"]
    _table(cursor, "known", ("part",), ((part,) for part in known))
    _table(cursor, "since_locked", ("name",), _each(since.locked))
    _table(cursor, "also_locked", ("name",), _each(wanted.lock))
    _table(cursor, "since_deactivated", ("name",), _each((*(since.deactivated or ()), *wanted.deactivate)))
    _table(cursor, "since_erased", ("name",), _each(since.erased))
    _table(cursor, "since_admins", ("name",), _each(since.admins))
    _table(cursor, "since_devices", ("user_id", "device_id"), since.devices or ())


def _each(names: Iterable[str] | None) -> Iterator[tuple[str]]:
    yield from ((name,) for name in names or ())


def _table(
    cursor: Cursor[tuple[object, ...]], name: str, columns: tuple[str, ...], rows: Iterable[tuple[str, ...]]
) -> None:
    fields = sql.SQL(", ").join(sql.SQL("{} text NOT NULL").format(sql.Identifier(column)) for column in columns)
    cursor.execute(sql.SQL("CREATE TEMPORARY TABLE {} ({}) ON COMMIT DROP").format(sql.Identifier(name), fields))
    with cursor.copy(sql.SQL("COPY {} FROM STDIN").format(sql.Identifier("pg_temp", name))) as copy:
        for row in rows:
            copy.write_row(row)


def _move(cursor: Cursor[tuple[object, ...]], wanted: Settle, before: dict[str, int], forward: int) -> dict[str, int]:
    moved = {}
    for name, place in before.items():
        target = max(place, wanted.since.sequences.get(name, 0)) + forward
        cursor.execute(
            "SELECT setval(format('%%I.%%I', schemaname, sequencename)::regclass,"
            " least(greatest(%s, coalesce(last_value, 0)), max_value)) FROM pg_sequences WHERE sequencename = %s",
            [target, name],
        )
        moved[name] = int(str((cursor.fetchone() or (0,))[0]))
    return moved


def _tell_of_devices(cursor: Cursor[tuple[object, ...]]) -> None:
    """Say of each user that their devices changed, so that clients and other servers ask for them again."""
    if not _columns(cursor, "device_lists_changes_in_room") or not _has_sequence(cursor, "device_lists_sequence"):
        return
    cursor.execute(
        "CREATE TEMPORARY TABLE changed ON COMMIT DROP AS SELECT user_id, min(device_id) AS device_id,"
        " nextval('device_lists_sequence') AS stream_id FROM devices WHERE NOT coalesce(hidden, false) GROUP BY user_id"
    )
    extra = {"instance_name": "'master'"}
    _insert(cursor, "device_lists_stream", "changed", {"stream_id": "stream_id", **_USER, **extra})
    rooms = {
        "stream_id": "stream_id",
        **_USER,
        **extra,
        "room_id": "room_id",
        "converted_to_destinations": "false",
        "inserted_ts": "(extract(epoch FROM now()) * 1000)::bigint",
    }
    joined = "changed JOIN local_current_membership USING (user_id) WHERE membership = 'join'"
    _insert(cursor, "device_lists_changes_in_room", joined, rooms)


_USER = {"user_id": "user_id", "device_id": "device_id"}


def _insert(cursor: Cursor[tuple[object, ...]], table: str, source: str, values: dict[str, str]) -> None:
    """Insert into those of the columns that this version's table has."""
    found = [name for name in values if name in _columns(cursor, table)]
    names = ", ".join(found)
    fields = ", ".join(values[name] for name in found)
    cursor.execute(f"INSERT INTO {table} ({names}) SELECT {fields} FROM {source}".encode())  # noqa: S608 (our own words)


def _columns(cursor: Cursor[tuple[object, ...]], table: str) -> set[str]:
    cursor.execute("SELECT attname FROM pg_attribute WHERE attrelid = to_regclass(%s) AND attnum > 0", [table])
    return {str(row[0]) for row in cursor.fetchall()}


def _has_sequence(cursor: Cursor[tuple[object, ...]], name: str) -> bool:
    cursor.execute("SELECT to_regclass(%s) IS NOT NULL", [name])
    return bool((cursor.fetchone() or (False,))[0])


def _follow(cursor: Cursor[tuple[object, ...]]) -> None:
    """Let `stream_positions` say where the sequences are."""
    for stream, name in STREAMS.items():
        if _has_sequence(cursor, name):
            sign = -1 if stream in BACKWARDS else 1
            cursor.execute(
                sql.SQL(
                    "UPDATE stream_positions SET stream_id = %s * (SELECT last_value FROM {}) WHERE stream_name = %s"
                ).format(sql.Identifier(name)),
                [sign, stream],
            )


def _count(cursor: Cursor[tuple[object, ...]]) -> dict[str, int]:
    cursor.execute(
        "SELECT (SELECT count(*) FROM access_tokens), (SELECT count(*) FROM users WHERE locked),"
        " (SELECT count(*) FROM users WHERE deactivated <> 0), (SELECT count(*) FROM e2e_one_time_keys_json)"
    )
    row = cursor.fetchone() or (0, 0, 0, 0)
    return dict(zip(("sessions", "locked", "deactivated", "keys"), (int(str(each)) for each in row), strict=True))


def _set_passwords(connection: psycopg.Connection[tuple[object, ...]], passwords: dict[str, str]) -> None:
    for role, password in passwords.items():
        with contextlib.suppress(psycopg.errors.UndefinedObject):  # the server makes it when it starts
            connection.execute(sql.SQL("ALTER ROLE {} PASSWORD {}").format(sql.Identifier(role), sql.Literal(password)))
