"""Somebody on a server of the real node: logins by matrix-nio, messages sent and read."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace

import nio


@dataclass
class Person:
    """An account on a server that is reached at `url`. `said` are the messages of its one room, in order."""

    url: str
    name: str
    password: str = field(repr=False)
    room: str = ""
    said: list[str] = field(default_factory=list)

    def through(self, url: str) -> Person:
        """Return the same person who reaches the server elsewhere."""
        return replace(self, url=url)

    def talk(self, text: str) -> None:
        """Log in, send a message, and read back everything that was ever said, in its order."""
        asyncio.run(self._talk(text))

    async def _talk(self, text: str) -> None:
        client = nio.AsyncClient(self.url, self.name)
        try:
            login = await client.login(self.password)
            assert isinstance(login, nio.LoginResponse), login
            if not self.room:
                made = await client.room_create(name="Hearth")
                assert isinstance(made, nio.RoomCreateResponse), made
                self.room = made.room_id
            sent = await client.room_send(self.room, "m.room.message", {"msgtype": "m.text", "body": text})
            assert isinstance(sent, nio.RoomSendResponse), sent
            self.said.append(text)
            await self._arrives(client, sent.event_id)
            found = await client.room_messages(self.room, start="", limit=500, direction=nio.MessageDirection.front)
            assert isinstance(found, nio.RoomMessagesResponse), found
            read = [event.body for event in found.chunk if isinstance(event, nio.RoomMessageText)]
            assert read == self.said, f"{read} is not {self.said}"
        finally:
            await client.close()
            await asyncio.sleep(0.05)  # aiohttp closes its sockets in the loop's next turns

    async def _arrives(self, client: nio.AsyncClient, event_id: str) -> None:
        async with asyncio.timeout(60):
            since = None
            while True:
                answer = await client.sync(timeout=5000, since=since)
                assert isinstance(answer, nio.SyncResponse), answer
                since = answer.next_batch
                joined = answer.rooms.join.get(self.room)
                if joined and any(event.event_id == event_id for event in joined.timeline.events):
                    return
