"""A restore's database: its files, its log up to the wanted moment, and what Synapse needs of it. Imports no Django.

Each part is done when the state says so; a call that was killed in one begins that one anew, or goes on with it.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

from backups.engine.contents import MANIFEST, ContentError
from backups.engine.database import lsn
from backups.engine.objects import Vault
from backups.engine.restore import disk, plan, replay
from backups.engine.restore.errors import RestoreError
from backups.engine.restore.fetch import Base, ahead
from backups.engine.restore.folder import Folder, Reached
from backups.engine.restore.plan import Plan
from backups.engine.restore.replay import Server, TooShort
from backups.engine.restore.request import Request, Settle
from backups.engine.restore.supply import Supply, WalDamaged
from backups.engine.restore.telling import Telling
from backups.engine.stores.base import StoreError
from security.streams import DataKey, StreamError

if TYPE_CHECKING:
    from backups.engine.restore.settle import Settled

Timed = Callable[[str], contextlib.AbstractContextManager[Any]]


class Database:
    """One restore's database."""

    def __init__(
        self,
        request: Request,
        vault: Vault,
        opens: Callable[[UUID], DataKey],
        stop: threading.Event,
        *,
        it: Plan,
        folder: Folder,
        telling: Telling,
        timed: Timed,
    ) -> None:
        self._request = request
        self._vault = vault
        self._opens = opens
        self._stop = stop
        self._it = it
        self._folder = folder
        self._telling = telling
        self._timed = timed
        self._data = Path(request.data)
        self._owner = disk.owner_of(request.tools)

    def run(self) -> tuple[Reached, Settled | None]:
        """Do what is not done yet. Raises `RestoreError`, `StoreError`."""
        state, telling = self._folder.state, self._telling
        if state.data in {"", "fetching"}:
            with self._timed("base"):
                telling.step("base")
                self._base()
        else:
            self._telling.add("base", self._it.need.point.base.size)
        settled = None
        if state.data == "fetched":
            with self._timed("replay"):
                telling.step("replay")
                state.reached = self._replay()
            state.data = "replayed"
            self._folder.save()
        else:
            self._telling.add("wal", self._telling.totals["wal"])
        if state.data == "replayed" and self._request.settle is not None:
            with self._timed("settle"):
                telling.step("settle")
                settled = self._settle(self._request.settle)
            state.data = "settled"
            self._folder.save()
        return state.reached, settled

    def _base(self) -> None:
        point = self._it.need.point
        if self._data.exists():
            self._folder.wipe(self._data)
        self._folder.state.data = "fetching"
        self._folder.save()
        pieces = self._vault.read(point.base, self._opens)
        share = point.base.size / max(point.base.plain, 1)
        try:
            told = ahead(pieces, self._stop, lambda size: self._telling.add("base", int(size * share)))
            with contextlib.closing(told) as plain:
                Base(self._data, self._owner).write(plain, point.system)
        except (StreamError, ContentError) as error:
            raise plan.damaged(self._it.catalogue, {point.base.name: str(error)}, self._it.need.to) from None
        except StoreError as error:
            if error.code not in {"StoreDamaged", "NoSuchObject"}:
                raise
            raise plan.damaged(self._it.catalogue, {point.base.name: str(error)}, self._it.need.to) from None
        self._telling.add("base", point.base.size)
        self._check_version(point.postgres_version)
        (self._data / MANIFEST).unlink(missing_ok=True)
        replay.mark_for_recovery(self._data, self._owner)
        if self._owner is not None:
            os.chown(self._data, *self._owner)
        self._folder.state.data = "fetched"
        self._folder.save()

    def _check_version(self, backed_up: int) -> None:
        ours = replay.version(self._request.tools)
        if ours // 10000 != backed_up // 10000:
            raise RestoreError(
                f"The backup is of PostgreSQL {backed_up // 10000}, and here is {ours // 10000}. Nothing was started. "
                "Restore with the version that was backed up.",
                code="WrongVersion",
            )

    def _replay(self) -> Reached:
        state, request = self._folder.state, self._request
        if replay.is_recovering(self._data):
            state.everything = False  # there may be more by now
        while True:
            try:
                if replay.is_recovering(self._data):
                    return self._replay_once()
                # It was promoted, and then its end was cut off: it comes up as after any crash.
                with self._folder.sockets() as sockets, self._server().running(sockets, None, {}) as server:
                    reached = server.await_ready(None)
                    server.end()
                    reached.stopped = not state.everything and (request.to is not None or bool(request.point))
                    return self._checked(reached)
            except TooShort:
                # PostgreSQL calls it a failure. All commits that there are were made until the wanted moment.
                state.everything = True
                self._folder.save()
            except WalDamaged as error:
                raise plan.damaged(self._it.catalogue, {error.name: str(error)}, self._it.need.to) from None

    def _replay_once(self) -> Reached:
        state = self._folder.state
        place = self._folder.path / "wal"
        if place.exists():
            self._folder.wipe(place)
        to = None if state.everything else self._it.need.to
        options = replay.recovery(to, at_point=bool(self._request.point))
        supply = Supply(self._it, self._vault, self._opens, place, owner=self._owner, telling=self._telling)
        with supply, self._folder.sockets() as sockets, self._server().running(sockets, supply, options) as server:
            reached = server.await_ready(supply)
            server.end()
        self._telling.add("wal", self._telling.totals["wal"])
        reached.stopped = reached.stopped or bool(self._request.point)
        return self._checked(reached)

    def _checked(self, reached: Reached) -> Reached:
        """Be sure that all WAL was replayed that is given, unless replay stopped at what was wanted."""
        if not reached.stopped and reached.end < self._it.floor:
            raise RestoreError(
                f"Replay ended at {lsn.text(reached.end)}, and what is stored goes to {lsn.text(self._it.floor)}: "
                "some of it is not what PostgreSQL wrote. Nothing was started. Take another restore point.",
                code="ReplayFailed",
            )
        return reached

    def _settle(self, wanted: Settle) -> Settled:
        from backups.engine.restore import amcheck  # noqa: PLC0415 (what is not used is not imported)
        from backups.engine.restore.settle import connected, sequences, settle  # noqa: PLC0415 (as above)

        state = self._folder.state
        state.moment = self._it.need.to or self._it.need.point.at
        with self._folder.sockets() as sockets, self._server().running(sockets, None, {}) as server:
            server.await_ready(None)
            with connected(server, self._request, wanted) as connection:
                if not state.sequences:
                    state.sequences = sequences(connection)
                    self._folder.save()
                settled = settle(connection, wanted, before=state.sequences, moment=state.moment, now=datetime.now(UTC))
            if self._request.check:
                with self._timed("check"):
                    it, user = self._request.tools, self._request.superuser
                    state.checked = amcheck.look(sockets, wanted.database, user, it, self._stop)
            server.end()
        return settled

    def _server(self) -> Server:
        return Server(self._data, self._folder.path, self._request.tools, self._stop)
