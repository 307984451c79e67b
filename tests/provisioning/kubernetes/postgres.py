"""A real PostgreSQL that asks for passwords, behind TLS of a test authority, as a region would bring it.

The wheel's PostgreSQL has no TLS of its own, so a few lines in front of it answer the request for it:
https://www.postgresql.org/docs/current/protocol-flow.html#PROTOCOL-FLOW-SSL
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import ssl
import subprocess
import tempfile
import threading
from pathlib import Path
from typing import Self

import psycopg

from provisioning.providers.kubernetes.place import Postgres
from provisioning.providers.local.processes import Command, passage, spawn_argv
from tests.cluster.certificates import Authority
from tests.services import NOBODY, OPTIONS, POSTGRES, wait

ADMIN, PASSWORD = "keeper", "an-admins-password"
SSL_REQUEST = bytes.fromhex("0000000804d2162f")


class Server:
    """One PostgreSQL and its TLS. `place` is how Hearth is told of it: as a user who is no superuser."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="hearth-postgres-", dir="/tmp"))
        self.authority = Authority("databases")
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if hasattr(self, "_listener"):
            self._listener.close()
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait(60)
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def place(self) -> Postgres:
        """What staff would type."""
        return Postgres("localhost", self.port, ADMIN, PASSWORD, self.authority.certificate.decode())

    def ask(self, query: str, *, user: str = "postgres", password: str = PASSWORD, database: str = "postgres") -> list:  # type: ignore[type-arg]
        """Return the rows of a query, past TLS."""
        with psycopg.connect(
            host=str(self.folder), user=user, password=password, dbname=database, autocommit=True
        ) as connection:
            found = connection.execute(query)
            return found.fetchall() if found.description else []

    def logs(self) -> str:
        """Return what it has logged: every statement."""
        return (self.folder / "postgres.log").read_text(errors="replace")

    def _start(self) -> None:
        uid = NOBODY if os.geteuid() == 0 else None
        data, word = self.folder / "data", self.folder / "word"
        data.mkdir(mode=0o700)
        word.write_text(PASSWORD)
        self.folder.chmod(0o1777)
        if uid is not None:
            for path in (data, word):
                os.chown(path, uid, uid)
        flags = ("-U", "postgres", "-A", "scram-sha-256", f"--pwfile={word}", "--no-sync", "--locale=C.UTF-8")
        initdb = self._spawn("initdb", "-D", str(data), *flags, uid=uid)
        assert initdb.wait(60) == 0, (self.folder / "initdb.log").read_text()
        options = (*OPTIONS, "listen_addresses=", f"unix_socket_directories={self.folder}", "log_statement=all")
        self._process = self._spawn("postgres", "-D", str(data), *[f"--{each}" for each in options], uid=uid)
        pid = data / "postmaster.pid"
        wait(lambda: pid.exists() and "ready" in pid.read_text())
        self.ask(f"CREATE ROLE {ADMIN} LOGIN CREATEDB CREATEROLE PASSWORD '{PASSWORD}'")
        self._serve()

    def _spawn(self, name: str, *words: str, uid: int | None) -> subprocess.Popen[bytes]:
        capabilities = passage(POSTGRES) if uid is not None else ()
        argv = (str(POSTGRES / name), *words)
        command = Command(name, argv, self.folder, {}, uid=uid, death_signal=signal.SIGQUIT, capabilities=capabilities)
        with (self.folder / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                spawn_argv(command),
                cwd=self.folder,
                env={"LC_ALL": "C"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _serve(self) -> None:
        pair = self.authority.issue("localhost", hosts=("localhost",))
        for name, content in (("tls.crt", pair.certificate), ("tls.key", pair.key)):
            (self.folder / name).write_bytes(content)
        self._tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self._tls.load_cert_chain(self.folder / "tls.crt", self.folder / "tls.key")
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._relay, args=[client], daemon=True).start()

    def _relay(self, client: socket.socket) -> None:
        try:
            if client.recv(8, socket.MSG_WAITALL) != SSL_REQUEST:
                return  # nobody is served in plain
            client.sendall(b"S")
            with self._tls.wrap_socket(client, server_side=True) as near, socket.socket(socket.AF_UNIX) as far:
                far.connect(str(self.folder / ".s.PGSQL.5432"))
                back = threading.Thread(target=_pump, args=[far, near], daemon=True)
                back.start()
                _pump(near, far)
                back.join()
        except OSError:
            pass
        finally:
            client.close()


def _pump(source: socket.socket, sink: socket.socket) -> None:
    """Pass everything on until one side ends, and tell the other."""
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
    for each in (source, sink):
        with contextlib.suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)
