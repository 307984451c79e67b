"""Notice a server whose processes run and yet do not answer: hung, stopped, or with its socket gone."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from provisioning.providers.local import postgres
from provisioning.providers.local.agent import probe

if TYPE_CHECKING:
    from provisioning.providers.local.agent.server import ManagedServer

STARTING, LATE, CALM, DOUBT = 0.1, 1.0, 10.0, 1.0
"""Seconds between two questions: while it starts, when its start takes long, when all is well, when it was silent."""
STARTS_QUICKLY = 30.0
ANSWER_WITHIN = 5.0
PATIENCE = 60.0
"""Seconds of silence after which a process that runs is ended and started again."""


class Watch:
    """Asks one server's Synapse and PostgreSQL, for as long as it is wanted."""

    def __init__(self, server: ManagedServer) -> None:
        self._server = server
        self._task: asyncio.Task[None] | None = None
        self._synapse = Silence()
        self._database = Silence()

    def start(self) -> None:
        """Watch from now on; twice is fine."""
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._look(), name=f"watch {self._server.unit.server_id}")

    def stop(self) -> None:
        """Ask no more."""
        if self._task is not None:
            self._task.cancel()
        self._task = None
        self._synapse, self._database = Silence(), Silence()

    def trouble(self) -> tuple[str, str]:
        """Return a named reason and a sentence when something runs and is silent; two empty texts otherwise."""
        wait = f"If it stays silent for {PATIENCE:.0f} seconds it is started again. Its data is safe."
        if self._database.doubted:
            return "DatabaseDown", f"Its PostgreSQL runs but takes no connections. {wait}"
        if self._synapse.doubted:
            return "NotAnswering", f"Synapse runs but does not answer. {wait}"
        return "", ""

    async def _look(self) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        while True:
            if self._server.answered:
                await self._ask_both()
                began = loop.time()
                doubted = self._synapse.doubted or self._database.doubted
                await asyncio.sleep(DOUBT if doubted or not self._server.answered else CALM)
            else:
                self._synapse = Silence()
                self._server.answered = await self._server.answers()
                quick = loop.time() - began < STARTS_QUICKLY
                await asyncio.sleep(STARTING if quick else LATE)

    async def _ask_both(self) -> None:
        server = self._server
        socket = postgres.socket_path(server.folder.sockets)
        synapse, database = await asyncio.gather(
            probe.answers(server.unit.port, seconds=ANSWER_WITHIN),
            probe.database_answers(socket, seconds=ANSWER_WITHIN),
        )
        if server.postgres.state == "running":
            if self._database.heard(database) > PATIENCE:
                server.postgres.kill_hung()
            elif not database and not socket.exists():
                await self._lost_socket()
        else:
            self._database = Silence()
        # Without its database it may be silent by right; and one that just ended is not hung.
        if server.synapse.state == "running" and server.answered and not self._database.doubted:
            if self._synapse.heard(synapse) > PATIENCE:
                server.synapse.kill_hung()
        else:
            self._synapse = Silence()

    async def _lost_socket(self) -> None:
        """Somebody emptied /tmp: no new connection can find the database. Only a new start makes the socket again."""
        server = self._server
        async with server.lock:
            if server.unit.wanted and server.postgres.state == "running":
                await server.postgres.stop()
                await server.postgres.start()
        self._database = Silence()


class Silence:
    """Since when somebody has not answered. One missed answer is not yet a doubt."""

    def __init__(self) -> None:
        self._since: float | None = None
        self._missed = 0

    @property
    def doubted(self) -> bool:
        """Whether it missed two answers in a row."""
        return self._missed >= 2

    def heard(self, answered: bool) -> float:
        """Take one result; return for how many seconds there has been silence."""
        now = asyncio.get_running_loop().time()
        if answered:
            self._since, self._missed = None, 0
            return 0.0
        self._since = now if self._since is None else self._since
        self._missed += 1
        return now - self._since
