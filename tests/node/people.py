"""Alice on a server of the real node: an account, a login by matrix-nio, messages sent and read."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from dataclasses import dataclass, field

import httpx
import nio

NULL = "\0"
PASSWORD = "correct horse battery staple"


@dataclass
class Person:
    """An account on a server that is reached at `url`. `said` are the messages of its one room, in order."""

    url: str
    name: str
    room: str = ""
    said: list[str] = field(default_factory=list)

    def register(self, secret: str) -> None:
        """Make the account by the registration secret."""
        with httpx.Client(base_url=self.url, timeout=30) as http:
            nonce = http.get("/_synapse/admin/v1/register").json()["nonce"]
            words = (nonce, self.name, PASSWORD, "notadmin")
            mac = hmac.new(secret.encode(), NULL.join(words).encode(), hashlib.sha1).hexdigest()
            body = {"nonce": nonce, "username": self.name, "password": PASSWORD, "admin": False, "mac": mac}
            answer = http.post("/_synapse/admin/v1/register", json=body)
        assert answer.status_code == 200, answer.text

    def talk(self, text: str) -> None:
        """Log in, send a message, and read back everything that was ever said, in its order."""
        asyncio.run(self._talk(text))

    async def _talk(self, text: str) -> None:
        client = nio.AsyncClient(self.url, self.name)
        try:
            login = await client.login(PASSWORD)
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
