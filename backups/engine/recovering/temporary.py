"""The restored database as a server that can be copied once, and nothing else. Imports no Django.

Its one client is `pg_basebackup` of the Cluster that takes its place: TLS by a certificate that the client verifies,
one role that may replicate, by a password. Nobody can read a table.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

import psycopg
from psycopg import sql

from backups.engine.restore.errors import RestoreError
from backups.engine.restore.folder import Folder
from backups.engine.restore.replay import Server
from backups.engine.restore.request import Request

ROLE = "hearth_backup"
"""Whoever was backed up in a cluster has it, and it owns nothing."""
RULES = f"local all all trust\nhostssl replication {ROLE} all scram-sha-256\nhost all all all reject\n"


class Temporary(Server):
    """A PostgreSQL on restored data that takes copies."""

    def ended(self) -> Exception | None:
        """Return why it has ended, or None while it runs."""
        return None if self._process is None or self._process.poll() is None else self._ended()


@contextlib.contextmanager
def serving(
    request: Request, stop: threading.Event, *, host: str, port: int, password: str, certificate: Path, key: Path
) -> Iterator[Temporary]:
    """Run it while the block lasts, on what a finished restore left. Raises `RestoreError`."""
    with Folder(request) as folder, folder.sockets() as sockets:
        if not folder.state.done:
            raise RestoreError("There is no finished restore. Nothing was changed.", code="BadRequest")
        rules = folder.path / "copy_hba.conf"
        rules.write_text(RULES, encoding="ascii")
        rules.chmod(0o644)
        options = {
            "listen_addresses": host,
            "port": str(port),
            "hba_file": str(rules),
            **tls(certificate, key),
            "password_encryption": "scram-sha-256",
            "max_wal_senders": "10",
            "fsync": "on",
            "full_page_writes": "on",
        }
        server = Temporary(Path(request.data), folder.path, request.tools, stop)
        with server.running(sockets, None, options):
            server.await_ready(None)
            _permit(sockets, port, request.superuser, password)
            yield server


def tls(certificate: Path, key: Path) -> dict[str, str]:
    """Return the settings by which it speaks TLS."""
    files = {"ssl_cert_file": str(certificate), "ssl_key_file": str(key)}
    return {"ssl": "on", "ssl_min_protocol_version": "TLSv1.2", **files}


def forget_process(request: Request) -> None:
    """Remove what a PostgreSQL of an earlier container left: in this one its number may be somebody else's.

    Only where nothing that ran before can run still, as in a container that has just begun. Raises `RestoreError`.
    """
    with Folder(request):
        (Path(request.data) / "postmaster.pid").unlink(missing_ok=True)


def _permit(sockets: Path, port: int, superuser: str, password: str) -> None:
    role = sql.Identifier(ROLE)
    try:
        with psycopg.connect(
            host=str(sockets), port=port, user=superuser, dbname="postgres", autocommit=True
        ) as connection:
            if connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [ROLE]).fetchone() is None:
                connection.execute(sql.SQL("CREATE ROLE {}").format(role))
            connection.execute(
                sql.SQL("ALTER ROLE {} LOGIN REPLICATION PASSWORD {}").format(role, sql.Literal(password))
            )
    except psycopg.Error as error:
        raise RestoreError(
            f"The restored database could not be made ready for its copy: {str(error).strip()} Nothing that ran "
            "before was touched.",
            code="SettleFailed",
            retry=True,
        ) from None
