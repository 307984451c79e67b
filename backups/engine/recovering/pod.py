"""What runs in the pod `recovery`: brings a server back and gives its database to the Cluster. Imports no Django.

    python -m backups.engine recover <folder of request.json>

It answers its operator (`told`) from its beginning to its end and ends by SIGTERM alone: what failed stays told. What
can pass is tried again for some minutes. Killed, it goes on with what lies on its volume.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from backups.engine import memory
from backups.engine.build import open_store
from backups.engine.recovering.told import Told, answering
from backups.engine.restore.command import Restore
from backups.engine.restore.errors import Cancelled, RestoreError
from backups.engine.restore.keys import OpenKeys
from backups.engine.restore.process import under_grant
from backups.engine.restore.request import Request, Settle, load
from backups.engine.restore.settle import settle_at
from backups.engine.settings import SettingsError
from backups.engine.stores.base import StoreError
from security.streams import DataKey

PATIENCE = 300.0
"""Seconds for which something passing may be in the way: a pod's way to others may be opened after its start."""
PAUSE, LONGEST_PAUSE = 1.0, 20.0
TURN = 0.5
CLUSTER = "postgres-rw"
ANYWHERE = "0.0.0.0"  # noqa: S104 (a pod is reached by its own address; the network policy says by whom)


@dataclass(frozen=True)
class Places:
    """Where things lie in the pod (docs/matrix-server.md)."""

    request: Path
    """The folder with request.json and `password`."""
    certificate: Path = Path("/etc/hearth-recovery-tls")
    password: Path = Path("/etc/synapse-secrets/password")
    authority: Path = Path("/etc/synapse-database/ca.crt")
    host: str = ANYWHERE
    port: int = 8009
    postgres: int = 5432
    cluster: str = CLUSTER


def main(folder: Path) -> int:
    """Do what the operator made this pod for, and return the exit code once SIGTERM has come."""
    memory.keep_little()
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    told = Told(os.environ.get("RECOVERY_REVISION", ""))
    pod = Pod(Places(folder), told, stop, settles=bool(os.environ.get("RECOVERY_SETTLES")))
    pod.run()
    return 0


class Pod:
    """One pod's work. `run` returns when `stop` is set."""

    def __init__(
        self,
        places: Places,
        told: Told,
        stop: threading.Event,
        *,
        settles: bool,
        ask: Callable[[uuid.UUID], DataKey] | None = None,
    ) -> None:
        self._places, self._told, self._stop = places, told, stop
        self._settles = settles
        self._ask = ask

    def run(self) -> None:
        """Answer, work, and answer on."""
        with answering(self._told, self._places.host, self._places.port):
            try:
                self._patiently()
            except Cancelled:
                return
            except RestoreError as error:
                self._told.failed(error)
            self._stop.wait()

    def _patiently(self) -> None:
        """Work until there is nothing left to do. Raises `RestoreError` for what does not pass."""
        pause, since, said = PAUSE, time.monotonic(), 0
        while not self._stop.is_set():
            try:
                self._attempt()
            except Cancelled:
                raise
            except RestoreError as error:
                done = self._told.status.done_bytes
                if done > said:  # it came nearer
                    pause, since, said = PAUSE, time.monotonic(), done
                if not error.retry or time.monotonic() - since > PATIENCE:
                    raise
                self._told.interrupted(error)
                self._stop.wait(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
            else:
                return

    def _attempt(self) -> None:
        try:
            request = load(self._places.request / "request.json")
            if self._settles:
                self._told.say("restore", step="settle", done_bytes=0, total_bytes=0)
                self._told.done({"settled": self._settle(request)})
            else:
                self._restore(request)
        except RestoreError:
            raise
        except StoreError as error:
            raise RestoreError(str(error), code=error.code, retry=error.retry) from None
        except (SettingsError, UnicodeError) as error:
            raise RestoreError(str(error), code="BadRequest") from None
        except OSError as error:
            text = f"The pod lacks what it needs: {error}. Nothing that ran before was touched."
            raise RestoreError(text, code="DiskFault", retry=True) from None
        except Exception as error:  # somebody must hear of it in the way they listen
            traceback.print_exc()
            raise RestoreError(f"It broke: {error}", code="EngineFault") from None

    def _settle(self, request: Request) -> dict[str, Any]:
        address = {
            "host": self._places.cluster,
            "user": "synapse",
            "dbname": "synapse",
            "password": self._places.password.read_text(encoding="utf-8").strip(),
            "sslmode": "verify-full",
            "sslrootcert": str(self._places.authority),
            "connect_timeout": 10,
        }
        return settle_at(address, request.settle or Settle(), moment_of(request))

    def _restore(self, request: Request) -> None:
        # Only a restore needs PostgreSQL's programs.
        from backups.engine.recovering.temporary import forget_process, serving  # noqa: PLC0415

        forget_process(request)
        with _following(self._stop) as ends:
            keys = OpenKeys(self._ask or under_grant(request), ends)
            found = Restore(request, open_store(request), keys, self._told, ends).run()
        certificate = self._places.certificate
        with serving(
            request,
            self._stop,
            host="*" if self._places.host == ANYWHERE else self._places.host,
            port=self._places.postgres,
            password=(self._places.request / "password").read_text(encoding="ascii").strip(),
            certificate=certificate / "tls.crt",
            key=certificate / "tls.key",
        ) as server:
            self._told.serves(found)
            while not self._stop.wait(TURN):
                if (ended := server.ended()) is not None:
                    raise RestoreError(str(ended), code="ReplayFailed", retry=True)


def moment_of(request: Request) -> datetime | None:
    """Return since when others may have seen more than the database has, if anybody says so.

    The living server may not answer, and then only the time that has passed tells how much others have seen since.
    """
    return (request.settle and request.settle.moment) or request.to


@contextlib.contextmanager
def _following(stop: threading.Event) -> Iterator[threading.Event]:
    """Give an event of one attempt's own, which is set soon after `stop`.

    A restore that fails in one thread ends its others by the event it was given. The pod itself goes on then: to try
    again, or to tell what failed.
    """
    own = threading.Event()

    def follow() -> None:
        while not own.is_set():
            if stop.wait(TURN):
                own.set()

    threading.Thread(target=follow, name="recovery-stop", daemon=True).start()
    try:
        yield own
    finally:
        own.set()
