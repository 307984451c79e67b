"""A server of the real node goes back to a moment and back again: real CloudNativePG and Synapse, by Hearth's pages."""

from __future__ import annotations

import datetime as dt
import re
import time
from collections.abc import Callable
from dataclasses import dataclass

import httpx

from provisioning.providers.kubernetes.place import ROUTE
from tests.cluster.api import Api, Object
from tests.forms import submit
from tests.node.hearth import Alice
from tests.node.people import Person
from tests.operator.servers import SERVER
from tests.way import expect, text

OCCUPANT = "hearth.host/server"
INGRESS = ("networking.k8s.io/v1", "Ingress")


@dataclass
class Bringing:
    """Alice's server goes back, and forward again. `limit`: seconds that any step may wait."""

    api: Api
    alice: Alice
    person: Person
    limit: float
    say: Callable[[str], None]

    def run(self) -> None:
        """Do it all; afterwards the server is where it was, and has what it had."""
        born = self.home()
        before = self._signs_in()
        self.person.talk("Before the moment")
        moment = dt.datetime.now(dt.UTC).replace(microsecond=0) + dt.timedelta(seconds=1)
        time.sleep(max(0.0, (moment - dt.datetime.now(dt.UTC)).total_seconds()) + 1)
        known = list(self.person.said)
        self.person.talk("After the moment")
        after = self._signs_in()

        page = self._chosen(moment)
        confirmed = {"confirm": self.alice.server_name}
        done = "Bring the backup back beside the server"
        self._carry_out("Restore", lambda: expect(submit(self.alice.browser, page, **confirmed), done))
        there = self.home()
        assert there != born, "the server lives with what was brought back"
        self.say(f"the server lives in {there} now")
        self._routed(there, born)
        self.person.url = ROUTE.format(namespace=there)
        assert (self._lets_in(before), self._lets_in(after)) == (True, False), "sessions are those of the moment"
        later, self.person.said = self.person.said, known
        self.person.talk("After the restore")

        page = self.alice.get(f"{self.alice.server}backups/")
        back = re.search(r'href="([^"]+/back/)"', page.text)
        assert back is not None, text(page.text)
        way = self.alice.get(back.group(1))
        title = "Go back to before the restore"
        self._carry_out(title, lambda: expect(submit(self.alice.browser, way, **confirmed), title))
        assert self.home() == born
        self._routed(born, there)
        self.person.url = ROUTE.format(namespace=born)
        self.person.said = later
        self.person.talk("Here again")

    def home(self) -> str:
        """Return where the server lives."""
        server = self.alice.server.split("/")[-2]
        (found,) = self.api.list("v1", "Namespace", labelSelector=f"{OCCUPANT}={server}")
        return str(found["metadata"]["name"])

    def _carry_out(self, kind: str, act: Callable[[], object]) -> None:
        self.alice.carry_out(kind, act, "ready", limit=self.limit)

    def _chosen(self, moment: dt.datetime) -> httpx.Response:
        """Wait until that moment can be chosen, and return the page that says what it means."""
        path = f"{self.alice.server}backups/restore/?what=moment&moment={moment:%Y-%m-%dT%H:%M:%S}"

        def offered() -> httpx.Response | None:
            page = self.alice.get(path)
            return page if "What it no longer has" in page.text else None

        found: httpx.Response = self.api.wait("the moment among those that can be chosen", offered, seconds=self.limit)
        return found

    def _routed(self, here: str, other: str) -> None:
        """See that only the server is reached from outside, and that nothing of the other runs but its database."""
        assert self.api.list(*INGRESS, here)
        assert not self.api.list(*INGRESS, other)
        held: Object | None = self.api.get(*SERVER, "synapse", other)
        assert held is not None
        assert held["spec"]["routing"]["unrouted"] is True
        pods = self.api.list("v1", "Pod", other)
        names = {each["metadata"]["labels"].get("app.kubernetes.io/name", "") for each in pods}
        assert not {each for each in names if each.startswith("synapse")}, names

    def _signs_in(self) -> str:
        login = {
            "type": "m.login.password",
            "identifier": {"type": "m.id.user", "user": self.person.name},
            "password": self.person.password,
        }
        answer = httpx.post(f"{self.person.url}/_matrix/client/v3/login", json=login, timeout=30)
        return str(answer.raise_for_status().json()["access_token"])

    def _lets_in(self, token: str) -> bool:
        where = f"{self.person.url}/_matrix/client/v3/account/whoami"
        return httpx.get(where, headers={"Authorization": f"Bearer {token}"}, timeout=30).status_code == 200
