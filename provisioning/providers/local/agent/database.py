"""The role and the database of one homeserver."""

from __future__ import annotations

from pathlib import Path

from provisioning.providers.local import postgres

SUPERUSER = "postgres"
SCRIPT = Path(__file__).with_name("database.sql")
"""It names configuration.ROLE and configuration.DATABASE."""


async def ensure_database(data: Path, socket_dir: Path, superuser_password: str, password: str) -> bool:
    """Give Synapse's role its password, and make role and database if missing. True if the database is new."""
    said = await postgres.execute(
        SCRIPT,
        data,
        socket_dir,
        user=SUPERUSER,
        password=superuser_password,
        variables={"SYNAPSE_PASSWORD": password},
    )
    return "new" in said
