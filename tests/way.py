"""The way of a new user over HTTP, with the pages' own forms: from sign-up to a homeserver that answers."""

from __future__ import annotations

import asyncio
import html
import re
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import httpx
import nio
import pyotp

from tests.forms import submit
from tests.stack import Stack

PASSWORD = "correct horse battery staple"


@dataclass(frozen=True)
class Connection:
    """What the connection card says."""

    url: str
    user: str
    password: str


@dataclass
class Person:
    """Somebody with a browser (without scripts), their mails, and their authenticator app."""

    stack: Stack
    email: str
    browser: httpx.Client = field(init=False)
    code: pyotp.TOTP | None = None

    def __post_init__(self) -> None:
        self.browser = httpx.Client(base_url=self.stack.url, follow_redirects=True, timeout=30)

    def sign_up(self) -> None:
        """Sign up, open the link of the mail, and add an authenticator app."""
        page = submit(self.browser, self.get("/account/signup/"), email=self.email, password1=PASSWORD)
        expect(page, "Open the link in your mail")
        page = submit(self.browser, self.get(self.mailed_link()), "/")
        expect(page, "Protect your account")
        self.add_authenticator()

    def add_authenticator(self) -> None:
        """Add an authenticator app."""
        page = self.get("/account/2fa/totp/activate/")
        secret = re.search(r'id="authenticator_secret">([A-Z2-7]+)<', page.text)
        assert secret is not None, page.text
        self.code = pyotp.TOTP(secret.group(1))
        page = submit(self.browser, page, code=self.code.now())
        expect(page, "recovery codes")

    def mailed_link(self, limit: float = 60) -> str:
        """Return the link in the newest mail to this person, as the inbox page shows it."""
        end = time.monotonic() + limit
        with httpx.Client(follow_redirects=True) as reader:
            while time.monotonic() < end:
                inbox = reader.get(self.stack.link("/inbox/"))
                rows = [row for row in inbox.text.split("</tr>") if self.email in row]
                paths = re.findall(r'href="(/inbox/[0-9a-f-]+/)"', "".join(rows))
                if paths:
                    mail = reader.get(f"{self.stack.url}{paths[0]}")
                    link = re.search(r'href="(http://[^"]+/account/[^"]+)"', mail.text)
                    assert link is not None, mail.text
                    return html.unescape(link.group(1))
                time.sleep(0.05)
        raise AssertionError(f"No mail to {self.email} came:\n{text(inbox.text)}")

    def create_organisation(self, name: str, plan: str) -> str:
        """Create an organisation and return the path of its page."""
        page = submit(self.browser, self.get("/organisations/new/"), name=name, plan=plan)
        expect(page, name)
        return "/o/" + page.url.path.split("/")[2] + "/"

    def create_server(self, organisation: str, name: str, **chosen: str) -> str:
        """Create a server and return the path of its page. `chosen` are other fields of the form, such as `region`."""
        page = submit(self.browser, self.get(f"{organisation}servers/new/"), name=name, **chosen)
        expect(page, name)
        assert re.fullmatch(rf"{organisation}servers/[0-9a-f-]+/", page.url.path), page.url
        return page.url.path

    def phase(self, server: str) -> str:
        """Return the server's phase as the live part of its page shows it."""
        page = self.browser.get(f"{server}live/")
        found = re.search(r'data-phase="(\w+)"', page.text)
        assert found is not None, f"{page.url}: {page.status_code}\n{text(page.text)}"
        return found.group(1)

    def wait_for(self, server: str, phase: str = "ready", limit: float = 180) -> None:
        """Look at the server's page until it shows `phase`."""
        end = time.monotonic() + limit
        seen = ""
        while time.monotonic() < end:
            seen = self.phase(server)
            if seen == phase:
                return
            if seen == "failed" and phase != "failed":
                break
            time.sleep(0.1)
        raise AssertionError(f"The server is {seen}, not {phase}:\n{text(self.get(server).text)}")

    def connection(self, server: str) -> Connection:
        """Open the connection card, and have the password shown."""
        page = submit(self.browser, self.get(server), "/reveal/")
        copies = [html.unescape(value) for value in re.findall(r'data-copy="([^"]+)"', page.text)]
        url = next(value for value in copies if value.startswith("http"))
        user = next(value for value in copies if value.startswith("@"))
        password = re.search(r'id="admin-password"[^>]*>([^<]+)<', page.text)
        assert password is not None, page.text
        return Connection(url, user, html.unescape(password.group(1)).strip())

    def delete_server(self, server: str, server_name: str) -> None:
        """Delete the server, typing its name."""
        expect(submit(self.browser, self.get(f"{server}delete/"), confirm=server_name), server_name)

    def wait_for_end(self, server: str, limit: float = 60) -> None:
        """Wait until the server's page says that it is gone."""
        self.wait_for(server, "deleted", limit)

    def get(self, path: str) -> httpx.Response:
        response = self.browser.get(path)
        assert response.status_code == 200, f"{path}: {response.status_code}\n{text(response.text)}"
        return response


def expect(page: httpx.Response, words: str) -> None:
    """Fail with the page's text unless it was found and has these words."""
    assert page.status_code == 200, f"{page.url}: {page.status_code}\n{text(page.text)}"
    assert words in page.text, f"{page.url} does not say “{words}”:\n{text(page.text)}"


def text(page: str) -> str:
    """Return what a person would read on the page."""
    return re.sub(r"\s*\n\s*", "\n", html.unescape(re.sub(r"<[^>]+>", "", page))).strip()


def talk(connection: Connection) -> float:
    """Log in with a real Matrix client, make a room, send a message and read it back; return the round trip in ms."""
    # In a thread of its own: where Playwright runs there is an event loop already.
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(lambda: asyncio.run(_talk(connection))).result()


async def _talk(connection: Connection) -> float:
    client = nio.AsyncClient(connection.url, connection.user)
    try:
        login = await client.login(connection.password)
        assert isinstance(login, nio.LoginResponse), login
        room = await client.room_create(name="Hearth")
        assert isinstance(room, nio.RoomCreateResponse), room
        first = await client.sync(timeout=0)
        assert isinstance(first, nio.SyncResponse), first
        started = time.perf_counter()
        content = {"msgtype": "m.text", "body": "Is anybody there?"}
        sent = await client.room_send(room.room_id, "m.room.message", content)
        assert isinstance(sent, nio.RoomSendResponse), sent
        while True:
            answer = await client.sync(timeout=5000, since=client.next_batch)
            assert isinstance(answer, nio.SyncResponse), answer
            joined = answer.rooms.join.get(room.room_id)
            if joined and any(event.event_id == sent.event_id for event in joined.timeline.events):
                return (time.perf_counter() - started) * 1000
    finally:
        await client.close()
        await asyncio.sleep(0.05)  # aiohttp closes its sockets in the loop's next turns
