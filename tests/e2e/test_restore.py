"""A server is restored from its own page to a moment before a message, and goes back; then all of it is taken along.

All of it is real.
"""

from __future__ import annotations

import gzip
import io
import re
import tarfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import httpx
import pytest

from tests.forms import submit
from tests.stack import Stack
from tests.way import Connection, Person, expect, text

pytestmark = [pytest.mark.xdist_group("e2e"), pytest.mark.timeout(600)]
POINT = re.compile(r"\?what=point&amp;point=([0-9a-z-]+)")
DOWNLOAD = re.compile(r'href="([^"]+/download/)"')
LONGEST = 240.0


class Talker:
    """A person's session at a homeserver, in one room. Only what this test needs of a client."""

    def __init__(self, connection: Connection) -> None:
        self.client = httpx.Client(base_url=connection.url, timeout=60, trust_env=False)
        login = {
            "type": "m.login.password",
            "identifier": {"type": "m.id.user", "user": connection.user},
            "password": connection.password,
        }
        token = self.ask("POST", "login", login)["access_token"]
        self.client.headers["Authorization"] = f"Bearer {token}"
        self.room = self.ask("POST", "createRoom", {"name": "Hearth"})["room_id"]
        self.since = self.ask("GET", "sync")["next_batch"]

    def ask(self, method: str, path: str, body: Any = None, **params: str) -> Any:
        answer = self.client.request(method, f"/_matrix/client/v3/{path}", json=body, params=params)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def say(self, words: str) -> None:
        self.ask("PUT", f"rooms/{self.room}/send/m.room.message/{words}", {"msgtype": "m.text", "body": words})

    def words(self) -> set[str]:
        """What was said in the room, as far as the server knows it."""
        chunk = self.ask("GET", f"rooms/{self.room}/messages", dir="b", limit="50")["chunk"]
        return {each["content"].get("body", "") for each in chunk if each["type"] == "m.room.message"}

    def hears(self, words: str) -> None:
        """Go on syncing from where this client was, and wait for words that are said now."""
        self.say(words)
        end = time.monotonic() + 60
        while time.monotonic() < end:
            answer = self.ask("GET", "sync", since=self.since, timeout="2000")
            self.since = answer["next_batch"]
            joined = answer["rooms"]["join"].get(self.room, {}) if "rooms" in answer else {}
            if any(each["content"].get("body") == words for each in joined.get("timeline", {}).get("events", [])):
                return
        raise AssertionError(f"A client that was there before never heard “{words}”.")


def wait(seen: Callable[[], Any], what: Callable[[], str]) -> Any:
    end = time.monotonic() + LONGEST
    while time.monotonic() < end:
        if found := seen():
            return found
        time.sleep(0.3)
    raise AssertionError(what())


def ended(person: Person, server: str, title: str, times: int = 1) -> None:
    """Wait until an operation of that name is done as often."""
    row = re.compile(rf">{title}</a></td>\s*<td>(\w+)")

    def done() -> bool:
        found = row.findall(person.browser.get(f"{server}live/").text)
        assert "Failed" not in found, text(person.get(server).text)
        return found.count("Done") >= times

    wait(done, lambda: text(person.get(server).text))
    person.wait_for(server)


def new_point(person: Person, server: str) -> str:
    """Have a restore point taken and return its name."""
    backups = f"{server}backups/"
    # The first one comes by itself, and may have begun before what the caller has just done.
    known = set(wait(lambda: POINT.findall(person.get(backups).text), lambda: text(person.get(backups).text)))
    wait(lambda: "Take a restore point now" in person.get(backups).text, lambda: text(person.get(backups).text))
    expect(submit(person.browser, person.get(backups), "/now/"), "A restore point")
    new = wait(lambda: set(POINT.findall(person.get(backups).text)) - known, lambda: text(person.get(backups).text))
    return str(min(new))


@pytest.fixture
def person(hearth: Stack) -> Iterator[Person]:
    person = Person(hearth, "restoring@example.org")
    with closing(person.browser):
        yield person


def test_back_to_before_a_message_and_back_again(person: Person) -> None:
    person.sign_up()
    organisation = person.create_organisation("Restorers", "hearth")
    server = person.create_server(organisation, "phoenix")
    person.wait_for(server)
    talker = Talker(person.connection(server))
    with closing(talker.client):
        there_and_back(person, server, talker)


def there_and_back(person: Person, server: str, talker: Talker) -> None:
    talker.say("before")
    point = new_point(person, server)
    talker.hears("after")

    page = person.get(f"{server}backups/restore/?what=point&point={point}")
    expect(page, "What it no longer has")
    name = "phoenix.hearth.localhost"
    expect(submit(person.browser, page, confirm=name), "Bring the backup back beside the server")
    ended(person, server, "Restore")
    assert talker.words() == {"before"}
    talker.hears("after the restore")  # with the token of a sync that had seen more

    page = person.get(f"{server}backups/")
    back = re.search(r'href="([^"]+/back/)"', page.text)
    assert back is not None, text(page.text)
    expect(submit(person.browser, person.get(back.group(1)), confirm=name), "Go back to before the restore")
    ended(person, server, "Go back to before the restore")
    assert talker.words() == {"before", "after"}
    talker.hears("here again")
    taken_along(person, server, {"before", "after"})


def taken_along(person: Person, server: str, words: set[str]) -> None:
    """Everything is exported and downloaded, in two pieces, and holds what was said."""
    exports = f"{server}backups/exports/"
    expect(submit(person.browser, person.get(exports), "/exports/", what="everything"), "The export is being made")
    link = wait(lambda: DOWNLOAD.search(person.get(exports).text), lambda: text(person.get(exports).text))
    first = person.browser.get(link[1], headers={"Range": "bytes=0-4999"})
    rest = person.browser.get(link[1], headers={"Range": "bytes=5000-", "If-Range": first.headers["ETag"]})
    assert (first.status_code, rest.status_code) == (206, 206)
    with tarfile.open(fileobj=io.BytesIO(first.content + rest.content)) as archive:
        found = {name.split("/", 1)[1]: archive.extractfile(name) for name in archive.getnames()}
        dump = found["database.sql.gz"]
        assert {"README.md", "SHA256SUMS", "media.csv", "configuration/signing.key", "decoder/decode.mjs"} <= set(found)
        assert dump is not None
        sql = gzip.decompress(dump.read()).decode()
    assert all(f'"{word}"' in sql.replace("\\", "") for word in words)
