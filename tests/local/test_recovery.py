"""A real server is brought back beside itself under a real grant, takes its own place, and gives it back."""

from __future__ import annotations

import signal
import uuid
from collections.abc import Iterator
from datetime import datetime
from typing import cast

import psutil
import pytest

from config.body import App, limited
from config.internal import LARGEST
from provisioning.matrix import Homeserver as Client
from provisioning.providers.base import ProviderError
from security.keyring.seams import seams
from security.transport.handler import InternalHandler
from tests.backups.restore.synapse import Person
from tests.local.authority import Authority
from tests.local.conftest import Agent, fences, wait_for
from tests.local.recovered import LONG, NOWHERE, Backed, Instance, granted, secret_left
from tests.security.transport.pki import LISTENER, Ca
from tests.security.transport.running import Given, Running, running

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.xdist_group("recovery")]
ACME = uuid.UUID(int=0xA)


@pytest.fixture
def hearth() -> Iterator[tuple[Running, Authority]]:
    """Hearth's internal listener, and the authority that it and the agents trust."""
    ca, authority = Ca(), Authority()
    authority.key, authority.name, authority.certificate, authority.trust = ca.key, ca.name, ca.certificate, ca.trust
    app = limited(cast("App", InternalHandler("config.internal_urls")), LARGEST)
    with running(Given(ca.material(LISTENER)), app) as made:
        yield made, authority


@pytest.fixture
def server(agent: Agent, hearth: tuple[Running, Authority], monkeypatch: pytest.MonkeyPatch) -> Iterator[Backed]:
    listener, authority = hearth
    found = Backed(agent, ACME, authority, listener.address)
    monkeypatch.setattr(seams, "owner_of_server", [{found.id: ACME}.get])
    found.make()
    try:
        found.introduce(listener.address)
        found.start()
        yield found
    finally:
        for key in agent.provider.observe():
            if key == found.spec.server_id or agent.provider.observe()[key].details["instance_of"] == str(found.id):
                agent.provider.remove(key, fence=next(fences), progress=lambda _: None)


class Story:
    """What Alice did on the server before and after a moment."""

    def __init__(self, server: Backed) -> None:
        spec = server.spec
        self.client = Client(server.seen().homeserver_url, spec.server_name)
        admin = self.client.register_admin("admin", "a long enough password", spec.secrets["registration"])
        assert admin
        self.client.put_user("alice", admin, password="the password of alice")
        self.alice = Person(self.client, "alice", spec.secrets["jwt"])
        self.room = self.alice.ask("POST", "createRoom", {})["room_id"]
        self.alice.say(self.room, "before")
        wait_for(lambda: bool(server.backup.get("point")), LONG)
        self.moment: datetime = server.now()
        self.alice.say(self.room, "after")
        wait_for(lambda: server.covered(self.moment), LONG)


@pytest.fixture
def story(server: Backed) -> Iterator[Story]:
    found = Story(server)
    with found.client:
        yield found


def test_a_server_takes_its_own_place_and_gives_it_back(server: Backed, story: Story) -> None:
    instance = Instance(server, granted(ACME, server.id))
    _another_key_is_refused(story, Instance(server, instance.grant))
    _broken_off(server, story, instance)
    found = instance.outcome()
    assert found.state == "done", found
    assert found.result["server_name"] == server.spec.server_name
    assert secret_left(instance.folder / "recovery", server.spec.secrets) == []
    instance.configure()
    instance.start()
    assert instance.seen().details["instance_of"] == server.spec.server_id
    assert instance.said(story.alice, story.room) == ["before"]
    assert server.said(story.alice, story.room) == ["after", "before"]

    line = server.backup["line"]
    _exchanged(server, instance, story, restored=True)
    assert server.said(story.alice, story.room) == ["before"]
    story.alice.say(story.room, "since then")
    wait_for(lambda: server.backup.get("line") not in (None, "", line), LONG)
    assert server.ended_lines == ["OtherTimeline"]

    line = server.backup["line"]
    _exchanged(server, instance, story, restored=False)
    assert server.said(story.alice, story.room) == ["after", "before"]
    wait_for(lambda: server.backup.get("line") not in (None, "", line), LONG)
    assert server.ended_lines == ["OtherTimeline", "OtherTimeline"]
    instance.remove()
    assert not instance.folder.exists()


def _another_key_is_refused(story: Story, other: Instance) -> None:
    other.recover(story.moment, signing_key_id="ed25519:a_other")
    found = other.outcome()
    assert (found.state, found.code, found.retry) == ("failed", "WrongSigningKey", False)
    with pytest.raises(ProviderError, match="not whole yet"):
        other.start()
    other.remove()


def _broken_off(server: Backed, story: Story, instance: Instance) -> None:
    """Cancelled, then killed, then its agent killed, while it waits for a key: it goes on each time."""
    server.introduce(NOWHERE)
    instance.recover(story.moment, server.since())
    with pytest.raises(ProviderError, match="not whole yet"):
        instance.start()
    instance.agent.provider.cancel_recovery(instance.spec.server_id, fence=next(fences))
    assert instance.recovering.state == "cancelled"
    assert instance.program() is None

    instance.recover(story.moment, server.since())
    wait_for(lambda: instance.program() is not None, LONG)
    first = cast("psutil.Process", instance.program())
    first.kill()
    wait_for(lambda: instance.program() not in (None, first), LONG)
    server.agent.end(signal.SIGKILL)
    server.agent.start()
    wait_for(lambda: instance.program() is not None, LONG)
    assert instance.recovering.state == "running"
    server.introduce(server.address)
    wait_for(lambda: server.seen().running, LONG)


def _exchanged(server: Backed, instance: Instance, story: Story, *, restored: bool) -> None:
    """What Hearth does at a switch, or to go back."""
    server.stop()
    instance.recover(story.moment, server.since())
    found = instance.outcome()
    assert found.state == "done", found.text
    assert found.result["settled"]["sequences"]["events_stream_seq"] > 1_000_000
    server.exchange(instance, restored=restored)
    server.exchange(instance, restored=restored)
    server.configure()
    server.start()
