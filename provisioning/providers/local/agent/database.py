"""The role and the database of one homeserver."""

from __future__ import annotations

from pathlib import Path

from psycopg import sql

from provisioning.providers.local import postgres
from provisioning.providers.local.configuration import DATABASE, ROLE

SUPERUSER = "postgres"


async def ensure_database(socket_dir: Path, superuser_password: str, password: str) -> bool:
    """Give Synapse's role its password, and make role and database if missing. True if the database is new."""
    connection = await postgres.connect(socket_dir, user=SUPERUSER, password=superuser_password)
    role, name = sql.Identifier(ROLE), sql.Identifier(DATABASE)
    async with connection:
        cursor = await connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [ROLE])
        words = "ALTER ROLE {} LOGIN PASSWORD {}" if await cursor.fetchone() else "CREATE ROLE {} LOGIN PASSWORD {}"
        await connection.execute(sql.SQL(words).format(role, sql.Literal(password)))
        cursor = await connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [DATABASE])
        if await cursor.fetchone():
            return False
        # From template0: the cluster's own UTF8 and locale C, with nothing that template1 may have got.
        await connection.execute(sql.SQL("CREATE DATABASE {} OWNER {} TEMPLATE template0").format(name, role))
    return True
