"""Restores in a cluster as Hearth asks for them: real API server, Hearth's own writes, a stand-in for the operator."""

from __future__ import annotations

import base64
import json
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from backups import recoveries
from backups.engine.restore import request as requests
from provisioning.providers.base import ProviderError, Recovery, ServerSpec, StaleFence
from provisioning.providers.kubernetes import homes
from provisioning.providers.kubernetes import recoveries as verbs
from provisioning.providers.kubernetes.client import Refused, connect
from provisioning.providers.kubernetes.objects import STOPPED
from provisioning.providers.kubernetes.place import Bucket, Place, Postgres
from provisioning.providers.kubernetes.provider import KubernetesProvider
from tests.cluster.api import Api, Object
from tests.cluster.given import Given
from tests.cluster.launch import Cluster
from tests.provisioning.kubernetes.conftest import SERVER, inline, sweep
from tests.provisioning.kubernetes.resting import Resting
from tests.provisioning.kubernetes.test_backing import BACKED_UP, BACKUP, STORE, WHERE

pytestmark = pytest.mark.xdist_group("cluster")
MOMENT = datetime(2026, 11, 24, 1, tzinfo=UTC)
KEYS = {name: BACKUP["files"][name] for name in ("name.key", "store.json")}


class Ground:
    """A server that runs, and what a restore of it asks for."""

    def __init__(self, cluster: Cluster | Given, api: Api) -> None:
        self.api = api
        self.client = connect(inline(cluster.kubeconfig))
        self.provider = KubernetesProvider(self.client, WHERE, patience=60.0)
        self.spec = replace(BACKED_UP, server_id=str(uuid.uuid4()))
        self.instance = str(uuid.uuid4())
        self.copy = recoveries.instance_spec(self.spec, uuid.UUID(self.instance), self.spec.version)
        self.said: list[str] = []
        for verb in (self.provider.ensure_storage, self.provider.configure):
            verb(self.spec, fence=1, progress=self.said.append)

    def asked(self, since: Any = None, *, older: bool = False, store: Any = STORE) -> Recovery:
        request = {
            "organisation": self.spec.organisation_id,
            "server": self.spec.server_id,
            "store": store,
            "name_key_file": "name.key",
            "grant": str(uuid.uuid4()),
            "settle": recoveries.settle(since, older=older, moment=MOMENT),
        }
        return Recovery(self.spec.server_id, self.spec.server_id, "backups.engine", request, KEYS)

    def recover(self, **options: Any) -> None:
        self.provider.recover(self.copy, self.asked(**options), fence=2, progress=self.said.append)

    def ended(self, state: str = "done") -> Any:
        """Wait for the end of it as Hearth does."""
        self.api.wait(state, lambda: self.provider.recovering(self.instance).state == state)
        return self.provider.recovering(self.instance)

    def trial(self) -> None:
        self.provider.configure(self.copy, fence=2, progress=self.said.append)
        self.provider.start(self.copy, fence=2, progress=self.said.append)

    def server(self, server_id: str) -> Object:
        found = self.api.get(*SERVER, homes.Homes(self.client).of(server_id))
        assert found is not None
        return found

    def exchange(self, *, restored: bool, fence: int = 3) -> None:
        self.provider.exchange(
            self.spec.server_id, self.instance, restored=restored, fence=fence, progress=self.said.append
        )

    def homes(self) -> list[str]:
        return [homes.Homes(self.client).of(each) for each in (self.spec.server_id, self.instance)]


@pytest.fixture
def resting(cluster: Cluster | Given, monkeypatch: pytest.MonkeyPatch) -> Iterator[Resting]:
    monkeypatch.setattr(verbs, "LOOK", 0.05)
    with Resting(cluster.kubeconfig) as running:
        yield running


@pytest.fixture
def ground(cluster: Cluster | Given, api: Api, resting: Resting) -> Iterator[Ground]:
    made = Ground(cluster, api)
    yield made
    for each in (made.spec.server_id, made.instance):
        sweep(api, f"hearth-{each}")


def born(*ids: str) -> list[str]:
    return [f"hearth-{each}" for each in ids]


def content(api: Api, namespace: str) -> dict[str, bytes]:
    found = api.get("v1", "Secret", "recovery-secrets", namespace)
    assert found is not None
    return {key: base64.b64decode(value) for key, value in found["data"].items()}


def lives_in(ground: Ground, server: str, home: str) -> None:
    """Look whether a server runs in this home, as servers do."""
    now = ground.server(server)
    labels = now["metadata"]["labels"]
    assert (now["metadata"]["namespace"], labels["hearth.host/server"]) == (f"hearth-{home}", server)
    assert "unrouted" not in now["spec"]["routing"]
    assert "closed" not in now["spec"]
    assert now["spec"]["backup"]["enabled"] is True
    assert ground.provider.route(server, "") == f"http://synapse-main.hearth-{home}.svc:8008"
    assert STOPPED not in now["metadata"]["annotations"]


def test_a_restore_and_the_way_back(ground: Ground, resting: Resting) -> None:
    server, instance, provider = ground.spec.server_id, ground.instance, ground.provider
    assert provider.recovering(instance).state == "none"
    ground.recover(since=provider.since(server))
    found = ground.ended()
    assert (found.result, found.exchanged) == ({"point": "p"}, False)
    made = ground.server(instance)["spec"]
    assert (made["routing"]["unrouted"], made["federation"]["enabled"]) == (True, False)
    assert made["backup"]["enabled"] is False
    assert made["recovery"]["from"] == {"namespace": f"hearth-{server}"}
    sizes = [part["storage"]["size"] for part in (made["recovery"], made["database"]["cluster"])]
    assert int(sizes[0][:-2]) - int(sizes[1][:-2]) == 4, "what is replayed lies beside the database"
    ground.trial()
    assert "recovery" not in ground.server(instance)["spec"]
    assert provider.recovering(instance).state == "done", "what it was stays known"
    seen = provider.observe()
    assert seen[instance].details["instance_of"] == server
    assert "instance_of" not in seen[server].details

    provider.stop(server, fence=3, progress=ground.said.append)
    ground.recover(since=provider.since(server, fence=3))
    assert ground.server(server)["spec"]["closed"] is True, "nobody writes any more when it is asked for the last time"
    assert ground.server(instance)["spec"]["recovery"]["settle"] is True
    ground.ended()
    ground.exchange(restored=True)
    ground.exchange(restored=True)
    assert ground.homes() == born(instance, server)
    assert provider.recovering(instance).exchanged is True
    provider.configure(ground.spec, fence=3, progress=ground.said.append)
    provider.start(ground.spec, fence=3, progress=ground.said.append)
    lives_in(ground, server, instance)

    provider.stop(server, fence=4, progress=ground.said.append)
    provider.recover(
        ground.copy, ground.asked(provider.since(server, fence=4), older=True), fence=4, progress=ground.said.append
    )
    assert ground.server(instance)["spec"]["recovery"]["settle"] is True
    ground.ended()
    ground.exchange(restored=False, fence=4)
    assert ground.homes() == born(server, instance)
    assert provider.recovering(instance).exchanged is False
    provider.configure(ground.spec, fence=4, progress=ground.said.append)
    provider.start(ground.spec, fence=4, progress=ground.said.append)
    assert ground.server(server)["spec"]["routing"].get("unrouted") is None
    assert max(resting.routed) == 1, "no moment had two that answer for one name"


def test_the_engine_understands_what_it_is_asked(ground: Ground, tmp_path: Path) -> None:
    server = ground.spec.server_id
    ground.recover(since=ground.provider.since(server), older=True)
    found = content(ground.api, f"hearth-{ground.instance}")
    (tmp_path / "request.json").write_bytes(found["request.json"])
    request = requests.load(tmp_path / "request.json")
    assert request.settle is not None
    origin = request.settle.since.origin
    assert origin is not None
    assert (origin.host, origin.password) == (f"postgres-rw.hearth-{server}.svc", ground.spec.secrets["database"])
    assert "pg_sequences" in origin.query
    assert (request.settle.older, request.settle.sessions, request.settle.moment) == (True, "keep", MOMENT)
    assert found["name.key"] == b"n" * 32
    assert request.hearth is not None
    again = found["password"]
    ground.recover()
    assert content(ground.api, f"hearth-{ground.instance}")["password"] == again, "the same for all of one recovery"
    told = json.dumps(ground.server(ground.instance)["spec"])
    assert [each for each in (*ground.spec.secrets.values(), again.decode()) if each in told] == []


def test_it_runs_until_the_operator_answers_for_this_very_call(ground: Ground, resting: Resting) -> None:
    ground.recover()
    ground.ended()
    ground.trial()
    resting.recovery = {"state": "running", "step": "settle", "doneBytes": 5, "totalBytes": 9, "secondsLeft": 3}
    ground.recover()
    found = ground.provider.recovering(ground.instance)
    assert found.state == "running"
    ground.api.wait("its word", lambda: ground.provider.recovering(ground.instance).step == "settle")
    found = ground.provider.recovering(ground.instance)
    assert (found.done_bytes, found.total_bytes, found.seconds_left) == (5, 9, 3)
    with pytest.raises(ProviderError, match="not whole yet") as caught:
        ground.exchange(restored=True)
    assert caught.value.retry


def test_one_that_failed_is_tried_again_and_one_can_be_cancelled(ground: Ground, resting: Resting) -> None:
    resting.recovery = {"state": "failed", "code": "StoreAway", "text": "The store does not answer.", "retry": True}
    ground.recover()
    found = ground.ended("failed")
    assert (found.code, found.text, found.retry) == ("StoreAway", "The store does not answer.", True)
    resting.recovery = {"state": "running", "step": "base"}
    ground.recover()
    assert ground.provider.recovering(ground.instance).state == "running"
    ground.api.wait("its word", lambda: ground.provider.recovering(ground.instance).step == "base")
    assert not ground.server(ground.instance)["spec"]["recovery"]["settle"], "what is not whole is fetched"
    ground.provider.cancel_recovery(ground.instance, fence=2)
    ground.ended("cancelled")
    resting.recovery = {"state": "done", "result": {}}
    ground.recover()
    ground.ended()
    ground.provider.cancel_recovery(ground.instance, fence=2)
    assert ground.provider.recovering(ground.instance).state == "done", "one that is over is left as it is"


def test_a_server_that_could_not_be_switched_is_opened_again(ground: Ground) -> None:
    provider, server = ground.provider, ground.spec.server_id
    provider.stop(server, fence=2, progress=ground.said.append)
    assert provider.since(server) == {"from": {"namespace": f"hearth-{server}"}}
    assert "closed" not in ground.server(server)["spec"], "a mark that another operation left closes nobody"
    assert provider.since(server, fence=2) == {"from": {"namespace": f"hearth-{server}"}}
    assert ground.server(server)["spec"]["closed"] is True
    provider.start(ground.spec, fence=2, progress=ground.said.append)
    assert "closed" not in ground.server(server)["spec"]
    assert provider.since(server) == {"from": {"namespace": f"hearth-{server}"}}
    assert "closed" not in ground.server(server)["spec"], "one that runs is asked as it runs"
    provider.stop(server, fence=3, progress=ground.said.append)
    with pytest.raises(StaleFence):
        provider.since(server, fence=2)


def test_what_became_whole_meanwhile_is_only_settled(
    ground: Ground, resting: Resting, monkeypatch: pytest.MonkeyPatch
) -> None:
    resting.recovery = {"state": "running", "step": "copy"}
    ground.recover()
    written = ground.provider._writer.write

    def whole_before(*words: Any, **options: Any) -> None:
        resting.recovery = {"state": "done", "result": {}}
        ground.ended()
        written(*words, **options)

    monkeypatch.setattr(ground.provider._writer, "write", whole_before)
    ground.recover()
    assert ground.server(ground.instance)["spec"]["recovery"]["settle"] is True


def test_an_account_that_could_not_switch_is_told_before_anything_is_fetched(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ground.client.request

    def refused(method: str, path: str, body: Any = None, **options: Any) -> Object:
        if "hearth.host/coming" in json.dumps(body or {}):
            raise Refused("whose server this is", code="SpecRefused", retry=False, status=422)
        return asked(method, path, body, **options)

    monkeypatch.setattr(ground.client, "request", refused)
    with pytest.raises(ProviderError, match="account hearth-provider") as caught:
        ground.recover()
    assert (caught.value.code, caught.value.retry) == ("NotHere", False)
    assert ground.api.get(*SERVER, f"hearth-{ground.instance}") is None


def test_who_sleeps_or_is_nobody_can_not_be_asked(ground: Ground) -> None:
    assert ground.provider.since(str(uuid.uuid4())) is None
    asleep = replace(ground.spec, suspended=True, suspend_message="Closed.")
    ground.provider.configure(asleep, fence=2, progress=ground.said.append)
    assert ground.provider.since(ground.spec.server_id) is None


def test_an_exchange_that_was_cut_off_is_ended_by_whatever_comes_next(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    ground.recover()
    ground.ended()
    ground.trial()
    with monkeypatch.context() as patched:
        patched.setattr(homes, "move", _killed)
        with pytest.raises(KeyboardInterrupt):
            ground.exchange(restored=True)
    assert ground.provider.recovering(ground.instance).exchanged is True, "begun counts as made"
    ground.provider.configure(ground.spec, fence=4, progress=ground.said.append)
    assert ground.homes() == born(ground.instance, ground.spec.server_id)
    assert ground.server(ground.instance)["spec"]["routing"]["unrouted"] is True
    with pytest.raises(StaleFence):
        ground.exchange(restored=False, fence=3)


def test_the_instance_goes_and_the_server_stays_with_its_data(ground: Ground) -> None:
    provider, server, instance = ground.provider, ground.spec.server_id, ground.instance
    ground.recover()
    ground.ended()
    ground.exchange(restored=True)
    held = ground.server(instance)  # no operator runs, which would take its finalizer away
    ground.api.patch(held, {"metadata": {"finalizers": None}})
    hasty = KubernetesProvider(ground.client, WHERE, removal=0.0)
    with pytest.raises(ProviderError, match="does not end"):
        hasty.remove(instance, fence=5, progress=ground.said.append)
    gone = ground.api.get("v1", "Namespace", f"hearth-{server}")
    assert gone is None or gone["metadata"]["deletionTimestamp"]
    provider.configure(ground.spec, fence=5, progress=ground.said.append)
    assert ground.server(server)["metadata"]["namespace"] == f"hearth-{instance}"


def test_nobody_is_taken_for_whoever_lives_where_they_were_born(ground: Ground) -> None:
    ground.recover()
    ground.ended()
    ground.exchange(restored=True)
    born_as = ground.api.get("v1", "Namespace", f"hearth-{ground.spec.server_id}")
    assert born_as is not None
    ground.api.patch(born_as, {"metadata": {"labels": {"hearth.host/server": None}}})
    for verb in (
        ground.provider.cancel_recovery,
        lambda key, fence: ground.provider.stop(key, fence=fence, progress=print),
    ):
        with pytest.raises(ProviderError, match="does not know"):
            verb(ground.instance, fence=5)
    with pytest.raises(ProviderError, match="does not know"):
        ground.exchange(restored=False, fence=5)
    ground.provider.remove(ground.instance, fence=5, progress=ground.said.append)
    assert ground.server(ground.spec.server_id)["metadata"]["namespace"] == f"hearth-{ground.instance}"


def test_no_strangers_instance_is_exchanged(ground: Ground) -> None:
    stranger = replace(ground.spec, server_id=str(uuid.uuid4()))
    ground.recover()
    with pytest.raises(ProviderError, match="no instance of this server"):
        ground.provider.exchange(
            ground.instance, ground.spec.server_id, restored=True, fence=3,
            progress=ground.said.append,
        )  # fmt: skip
    other = replace(ground.asked(), source=stranger.server_id)
    with pytest.raises(ProviderError, match="no instance of this server"):
        ground.provider.recover(ground.copy, other, fence=3, progress=ground.said.append)


@pytest.mark.parametrize(
    ("place", "spec", "store", "word"),
    [
        (replace(WHERE, postgres=Postgres("db.example", 5432, "hearth", "word")), {}, STORE, "its own PostgreSQL"),
        (replace(WHERE, bucket=Bucket("https://s3.example", "media")), {}, STORE, "in a bucket"),
        (replace(WHERE, backup_image=""), {}, STORE, "neither image nor issuer"),
        (WHERE, {"network": "10.64.3.0/24"}, STORE, "networks of their own"),
        (WHERE, {}, {"type": "folder"}, "reach no folder"),
    ],
    ids=["shared database", "bucket", "no image", "network", "folder"],
)
def test_where_nothing_can_be_brought_back_that_is_said(
    ground: Ground, place: Place, spec: dict[str, Any], store: dict[str, Any], word: str
) -> None:
    provider = KubernetesProvider(ground.client, place)
    wanted: ServerSpec = replace(ground.copy, **spec)
    with pytest.raises(ProviderError, match=word) as caught:
        provider.recover(wanted, ground.asked(store=store), fence=2, progress=ground.said.append)
    assert (caught.value.code, caught.value.retry) == ("NotHere", False)
    assert ground.api.get("v1", "Namespace", f"hearth-{ground.instance}") is None


def _killed(*_words: Any) -> Callable[..., None]:
    raise KeyboardInterrupt
