"""Databases in a PostgreSQL that a region brings: one for each server, with a user of its own that sees no other.

Every step is idempotent and fenced: the fence of its last writer is in the comment of the server's role, and writers of
one server take turns by an advisory lock. The password is sent as a SCRAM verifier, so no log of the database has it.
https://www.postgresql.org/docs/current/libpq-misc.html#LIBPQ-PQENCRYPTPASSWORDCONN
"""

from __future__ import annotations

import ssl
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import psycopg
from psycopg import sql

from provisioning.providers.base import ProviderError, StaleFence
from provisioning.providers.kubernetes.place import Postgres

OLDEST = 140000
LOCKS = 0x48454152  # the first of the two numbers of an advisory lock: those of Hearth's servers
MARK = "Hearth, fence "
SAFE = "Running servers and their data are not touched."
CONNECTIONS = 200
"""How many one server may hold: each of its processes has at most ten."""


class Databases:
    """One PostgreSQL. Each call has a connection of its own: they are rare."""

    def __init__(self, place: Postgres) -> None:
        self._place = place

    def ensure(self, name: str, password: str, fence: int) -> None:
        """Make the role and its database, or bring them to what they should be."""
        with self._connected() as connection:
            _alone(connection, name)
            _check(connection, name, fence)
            role = sql.Identifier(name)
            if _role(connection, name) is None:
                connection.execute(sql.SQL("CREATE ROLE {}").format(role))
            _mark(connection, name, fence)
            verifier = connection.pgconn.encrypt_password(password.encode(), name.encode(), b"scram-sha-256")
            connection.execute(
                sql.SQL("ALTER ROLE {} LOGIN CONNECTION LIMIT {} PASSWORD {}").format(
                    role, sql.Literal(CONNECTIONS), sql.Literal(verifier.decode())
                )
            )
            # Who is no superuser must be a member of the role to give it a database.
            connection.execute(sql.SQL("GRANT {} TO CURRENT_USER").format(role))
            _make(connection, name)
            connection.execute(sql.SQL("REVOKE ALL ON DATABASE {} FROM PUBLIC").format(role))

    def remove(self, name: str, fence: int) -> bool:
        """Remove the database and its role; True if there was something."""
        with self._connected() as connection:
            _alone(connection, name)
            if _role(connection, name) is None:
                return False
            _check(connection, name, fence)
            _mark(connection, name, fence)
            # Its last connections end with it: its pods are gone, or going.
            connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))
            connection.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(name)))
            return True

    def sizes(self) -> Mapping[str, int]:
        """Return the bytes of each server's database, by its name."""
        with self._connected() as connection:
            rows = connection.execute(
                "SELECT datname, pg_database_size(oid) FROM pg_database WHERE datname ~ '^hearth_[0-9a-f]{32}$'"
            )
            return {str(name): int(size) for name, size in rows}

    def faults(self) -> list[str]:
        """Return what it lacks, in sentences."""
        with self._connected() as connection:
            rights = connection.execute(
                "SELECT rolcreatedb OR rolsuper, rolcreaterole OR rolsuper FROM pg_roles WHERE rolname = current_user"
            ).fetchone() or (False, False)
            lacks = [right for right, has in zip(("CREATEDB", "CREATEROLE"), rights, strict=True) if not has]
            found = [f"Its user may not make databases and roles: grant it {' and '.join(lacks)}."] if lacks else []
            if connection.info.server_version < OLDEST:
                found.append("It is older than PostgreSQL 14, which Synapse needs.")
        return found

    @contextmanager
    def _connected(self) -> Iterator[psycopg.Connection]:
        """Give a connection by verified TLS. What goes wrong is told in words, and never with what was sent."""
        place = self._place
        with tempfile.NamedTemporaryFile("w", suffix=".crt") as authority:
            authority.write(place.authority)
            authority.flush()
            public = ssl.get_default_verify_paths().cafile or "system"
            try:
                with psycopg.connect(
                    host=place.host,
                    port=place.port,
                    user=place.user,
                    password=place.password,
                    dbname="postgres",
                    sslmode="verify-full",
                    sslrootcert=authority.name if place.authority else public,
                    gssencmode="disable",
                    connect_timeout=10,
                    application_name="hearth",
                    options="-c statement_timeout=60000 -c lock_timeout=30000",
                    autocommit=True,
                ) as connection:
                    yield connection
            except psycopg.Error as error:
                raise _told(error) from None


def _alone(connection: psycopg.Connection, name: str) -> None:
    """Take the lock of one server; it goes with the connection."""
    connection.execute("SELECT pg_advisory_lock(%s, hashtext(%s))", [LOCKS, name])


def _role(connection: psycopg.Connection, name: str) -> str | None:
    """Return the comment of the role; None if there is no role."""
    query = "SELECT coalesce(shobj_description(oid, 'pg_authid'), '') FROM pg_roles WHERE rolname = %s"
    row = connection.execute(query, [name]).fetchone()
    return None if row is None else str(row[0])


def _check(connection: psycopg.Connection, name: str, fence: int) -> None:
    said = _role(connection, name)
    number = (said or "").removeprefix(MARK)
    if number.isdecimal() and int(number) > fence:
        raise StaleFence("A newer worker has taken over this server.", seen=int(number))


def _mark(connection: psycopg.Connection, name: str, fence: int) -> None:
    words = sql.SQL("COMMENT ON ROLE {} IS {}").format(sql.Identifier(name), sql.Literal(f"{MARK}{fence}"))
    connection.execute(words)


def _make(connection: psycopg.Connection, name: str) -> None:
    query = "SELECT pg_get_userbyid(datdba) FROM pg_database WHERE datname = %s"
    row = connection.execute(query, [name]).fetchone()
    if row is None:
        # Synapse refuses another order of text. Older ones know no other provider than libc.
        provider = sql.SQL("LOCALE_PROVIDER libc" if connection.info.server_version >= 150000 else "")
        words = "CREATE DATABASE {} OWNER {} TEMPLATE template0 ENCODING 'UTF8' LC_COLLATE 'C' LC_CTYPE 'C' {}"
        connection.execute(sql.SQL(words).format(sql.Identifier(name), sql.Identifier(name), provider))
    elif row[0] != name:
        raise ProviderError(
            f"The region's PostgreSQL has a database {name} that Hearth did not make. Nothing in it was touched, and "
            "nothing was made. Ask support.",
            code="DatabaseTaken",
            retry=False,
        )


def _told(error: psycopg.Error) -> ProviderError:
    if isinstance(error, psycopg.errors.InsufficientPrivilege):
        said = error.diag.message_primary or "permission denied"
        return ProviderError(
            f"The region's PostgreSQL does not permit Hearth to do this ({said}). {SAFE} Staff can check the region.",
            code="DatabaseForbidden",
            retry=False,
        )
    text = str(error)
    if "authentication failed" in text:
        return ProviderError(
            f"The region's PostgreSQL does not accept Hearth's password. {SAFE} Staff must renew it; then try again.",
            code="DatabaseCredentials",
            retry=False,
        )
    if "certificate" in text:
        return ProviderError(
            f"The region's PostgreSQL can't be trusted: its certificate is not one that Hearth knows. {SAFE} Staff can "
            "check the region.",
            code="DatabaseUntrusted",
            retry=False,
        )
    what = f"error {error.sqlstate}" if error.sqlstate else type(error).__name__
    return ProviderError(
        f"The region's PostgreSQL does not answer as it should ({what}). {SAFE} Hearth keeps trying.",
        code="DatabaseUnreachable",
    )
