"""A real Synapse goes back in time, and its clients go on: what they saw since then is neither told again nor lost."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import msgspec
import pytest

from backups.engine.restore import living
from backups.engine.restore.errors import RestoreError
from backups.engine.restore.request import Living, Settle, Since
from backups.engine.restore.settle import A_SECOND, MARGIN, settle_at
from provisioning.matrix import Homeserver as Client
from provisioning.matrix import MatrixError
from tests.backups.restore.synapse import SINCE, Backed, Person, agent, backed
from tests.local.conftest import wait_for

__all__ = ["agent", "backed"]
pytestmark = pytest.mark.xdist_group("restored-synapse")


def test_clients_go_on_after_a_server_went_back_in_time(backed: Backed, monkeypatch: pytest.MonkeyPatch) -> None:
    spec, url = backed.homeserver.spec, backed.homeserver.seen().homeserver_url
    secrets = spec.secrets
    with Client(url, spec.server_name) as client:
        admin, people, room = _a_room(client, secrets)
        alice, bob, charlie, dora = people
        lost = Person(client, "alice", secrets["jwt"])
        assert alice.give_keys("AAAA", "BBBB") == 2
        media = client.request("POST", "/_matrix/media/v3/upload?filename=a.txt", token=alice.token, body={"a": 1})
        alice.say(room, "before")
        bob.sync()
        backed.start()
        backed.point()
        time.sleep(1.1)
        moment = backed.cluster.value("SELECT clock_timestamp()")
        time.sleep(0.2)
        for number in range(5):
            alice.say(room, f"after {number}")
        used = bob.claim(alice)
        alice.sync()
        assert "after 4" in bob.heard(room)
        lost.ask("POST", "logout", {})
        late = Person(client, "bob", secrets["jwt"])
        client.put_user("charlie", admin, locked=True)
        client.request("POST", f"/_synapse/admin/v1/deactivate/{dora.id}", token=admin, body={"erase": False})
        backed.covered()
        backed.stop()
        since = msgspec.json.decode(backed.cluster.psql(SINCE), type=Since)
        _asks_for_itself(backed, since, monkeypatch)
        found = backed.back_to(moment, since=since)
        assert [found["settled"][part] for part in ("one_time_keys", "deactivated")] == [2, 1]
        assert used
        # With the token from after the moment they hear what is said now, and each other's new keys.
        alice.say(room, "now")
        heard = bob.sync()
        assert _said(heard["rooms"]["join"][room]["timeline"]["events"]) == ["now"]
        assert alice.id in heard["device_lists"]["changed"]
        assert bob.claim(alice) == {}
        assert alice.sync()["device_one_time_keys_count"].get("curve25519", 0) == 0
        assert alice.give_keys("CCCC") == 1
        assert len(bob.claim(alice)) == 1
        assert _said(bob.ask("GET", f"rooms/{room}/messages?dir=b&limit=50")["chunk"]) == ["now", "before"]
        # Ended sessions stay ended, who was locked or left stays so, and what came later is gone.
        for gone, errcode in ((lost, "M_UNKNOWN_TOKEN"), (late, "M_UNKNOWN_TOKEN"), (charlie, "M_USER_LOCKED")):
            assert gone.refusal() == errcode
        _has_left(client, secrets, dora, alice, room)
        assert _download(url, media["content_uri"], alice.token) == {"a": 1}
    _counts_the_time(backed)


def _counts_the_time(backed: Backed) -> None:
    """Settled again where it runs, its streams go forward by all the time that somebody says."""
    address = {"host": str(backed.cluster.folder), "user": "postgres", "dbname": "synapse"}
    address["password"] = backed.cluster.unit.superuser_password
    day = timedelta(days=1)
    before, after = (
        settle_at(address, Settle(sessions="all"), moment)["sequences"]["events_stream_seq"]
        for moment in (None, datetime.now(UTC) - day)
    )
    assert after - before >= A_SECOND * day.total_seconds() + MARGIN


def _asks_for_itself(backed: Backed, since: Since, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where Hearth only says where the living database is, a restore hears the same of it."""
    secret = backed.cluster.unit.superuser_password
    there = Living(host=str(backed.cluster.folder), user="postgres", password=secret, query=SINCE.read_text())
    wanted = Settle(since=Since(origin=there))
    with monkeypatch.context() as patched:
        patched.setattr(living, "PATIENCE", 0.0)
        assert living.asked(wanted) == (Settle(sessions="all"), False), "nothing is believed that no TLS proves"
        patched.setattr(
            living, "TRUSTED", {}
        )  # this PostgreSQL is built without TLS; the one of `make e2e-node` has it
        assert living.asked(wanted) == (Settle(since=since), True)
        older, _ = living.asked(msgspec.structs.replace(wanted, older=True))
        known = msgspec.structs.replace(since, locked=None, admins=None)
        assert (older.since, older.lock) == (known, since.locked)
        alone = Settle(since=Since(origin=there, streams_alone=True))
        assert living.asked(alone) == (Settle(since=Since(sequences=since.sequences)), True)


def _a_room(client: Client, secrets: Mapping[str, str]) -> tuple[str, list[Person], str]:
    """Return the administrator's token, four people, and the room they are all in."""
    admin = client.register_admin("admin", "a long enough password", secrets["registration"])
    assert admin
    names = ("alice", "bob", "charlie", "dora")
    for name in names:
        client.put_user(name, admin, password=f"the password of {name}")
    people = [Person(client, name, secrets["jwt"]) for name in names]
    room = people[0].ask("POST", "createRoom", {"preset": "public_chat"})["room_id"]
    for each in people[1:]:
        each.ask("POST", f"join/{room}", {})
    return admin, people, room


def _has_left(client: Client, secrets: Mapping[str, str], gone: Person, other: Person, room: str) -> None:
    with pytest.raises(MatrixError):
        Person(client, "dora", secrets["jwt"])
    wait_for(lambda: gone.id not in other.ask("GET", f"rooms/{room}/joined_members")["joined"])


def _said(events: list[dict[str, Any]]) -> list[str]:
    return [each["content"].get("body", "") for each in events if each["type"] == "m.room.message"]


def _download(url: str, uri: str, token: str) -> Any:
    path = f"{url}/_matrix/client/v1/media/download/{uri.removeprefix('mxc://')}"
    return httpx.get(path, headers={"Authorization": f"Bearer {token}"}, trust_env=False).json()


def test_another_signing_key_than_the_servers_is_refused(backed: Backed) -> None:
    backed.start()
    backed.point()
    backed.covered()
    backed.stop()

    with pytest.raises(RestoreError, match="other homeservers") as caught:
        backed.restore(backed.request(signing_key_id="ed25519:a_other", tools=backed.tools))

    assert caught.value.code == "WrongSigningKey"
    assert not (backed.folder / "r" / "data").exists()
