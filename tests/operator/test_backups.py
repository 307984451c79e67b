"""Backups as the operator sees them: the condition BackupReady, what is stored before a sleep, the last backup."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from provisioning.operator import backups, status
from provisioning.operator import plan as planning
from provisioning.operator.backups import SILENT
from provisioning.operator.children import Certified, Database, Place, Workload
from provisioning.operator.diagnosis import of_attachments
from provisioning.operator.observed import AGENT, IDENTITY, MAIN, Observed, Told
from tests.chart import values
from tests.cluster.furnish import NAME
from tests.cluster.given import Given
from tests.cluster.launch import Cluster
from tests.operator.agents import Agents
from tests.operator.homeservers import Homeservers
from tests.operator.process import Operator
from tests.operator.servers import DEPLOYMENT, ISSUER, SERVER, STATEFUL, Server, Servers, large, permit
from tests.operator.test_pure import child

pytestmark = pytest.mark.xdist_group("cluster-operator")

BACKED_UP: dict[str, Any] = values.BACKUP | {"issuerRef": ISSUER, "storage": {"size": "3Gi", "class": NAME}}
WRITTEN = Told(True, True, "Written", "All is stored.")


@pytest.fixture(scope="module")
def agents() -> Iterator[Agents]:
    with Agents() as running:
        yield running


@pytest.fixture(scope="module")
def operator(
    cluster: Cluster | Given, tmp_path_factory: pytest.TempPathFactory, homeservers: Homeservers, agents: Agents
) -> Iterator[Operator]:
    """An operator that asks the stand-in for agents."""
    folder = tmp_path_factory.mktemp("operator")
    with Operator(cluster.kubeconfig, folder, homeservers.address, "--agent", agents.address) as running:
        yield running


def backed_up(servers: Servers) -> Server:
    made = servers.make(large(backup=BACKED_UP))
    made.wait_ready()
    return made


def test_a_server_is_backed_up_when_its_agent_says_so_and_goes_after_its_last_backup(
    operator: Operator, servers: Servers, agents: Agents
) -> None:
    namespace = servers.place()
    agents.faults[namespace] = ("StoreDenied", "The store refuses these credentials.")
    server = servers.make(large(backup=BACKED_UP), namespace=namespace)
    server.wait_ready()  # people are served whatever becomes of backups
    found = server.wait("BackupReady", "False", "StoreDenied")
    assert found["message"] == "The store refuses these credentials."
    assert server.condition("Degraded")["status"] == "False"
    del agents.faults[namespace]
    assert "stored" in server.wait("BackupReady", "True", "Written")["message"]
    _goes_after_its_last_backup(server, agents)


def _goes_after_its_last_backup(server: Server, agents: Agents) -> None:
    api, namespace = server.api, server.namespace
    agents.slow.add(namespace)
    permit(api, *SERVER, "synapse", namespace)
    api.delete(*SERVER, "synapse", namespace)
    api.wait("order of the final backup", lambda: namespace in agents.finals)
    main = server.need(STATEFUL, "synapse-main")
    assert (main["spec"]["replicas"], main.get("status", {}).get("replicas", 0)) == (0, 0)
    order = agents.finals[namespace]
    api.wait("another question", lambda: agents.asked[namespace, "final"] > 1)
    assert agents.finals[namespace] == order, "one final backup, however often it is asked for"
    assert server.child(("postgresql.cnpg.io/v1", "Cluster"), "postgres")
    agents.slow.discard(namespace)
    api.wait("end of the server", lambda: api.get(*SERVER, "synapse", namespace) is None)
    assert "p2" in server.wait_event("FinalBackupTaken")


def test_everything_is_stored_before_the_database_sleeps(operator: Operator, servers: Servers, agents: Agents) -> None:
    server = backed_up(servers)
    agents.slow.add(server.namespace)
    server.change(suspended={"message": "Please pay."})
    # Its processes stop, and then the agent and the database wait.
    server.wait_child(STATEFUL, "synapse-main", lambda each: each["spec"]["replicas"] == 0)
    api = server.api
    api.wait("a wish to store all", lambda: agents.asked[server.namespace, "store-all"] > 1)
    cluster = server.need(("postgresql.cnpg.io/v1", "Cluster"), "postgres")
    assert cluster["metadata"]["annotations"]["cnpg.io/hibernation"] == "off"
    assert server.need(DEPLOYMENT, "backup-agent")["spec"]["replicas"] == 1
    api.wait("word of it", lambda: "backed up" in server.condition("Progressing")["message"])
    agents.slow.discard(server.namespace)
    server.wait("Progressing", "False")
    assert server.condition("DatabaseReady")["reason"] == "Hibernated"
    assert server.condition("BackupReady")["reason"] == "Suspended"
    assert server.need(DEPLOYMENT, "backup-agent")["spec"]["replicas"] == 0


class Said:
    """In the place of Notices, of which a test wants to know what was said."""

    def __init__(self) -> None:
        self.reasons: list[str] = []

    def tell(self, _server: Any, reason: str, _note: str, *, warn: bool = False) -> None:
        self.reasons.append(f"{reason}!" if warn else reason)


class Stays:
    """In the place of the store of children: what there is of one server."""

    def __init__(self, moment: Observed) -> None:
        self._moment = moment

    def children(self, _namespace: str) -> Any:
        return self._moment.children


def last(moment: Observed, address: str, turns: int = 1, **spec: Any) -> tuple[list[str], list[str]]:
    """Take turns at the final backup of a server whose children are so; return what they wait for, and what is said."""

    async def take() -> list[str]:
        asking = backups.Agents(address)
        try:
            ours = backups.Backups(asking, None, Stays(moment), said)  # type: ignore[arg-type]
            return [await ours.final(DELETED | {"spec": DELETED["spec"] | spec}) for _ in range(turns)]
        finally:
            await asking.close()

    said = Said()
    return asyncio.run(take()), said.reasons


DELETED: dict[str, Any] = {
    "metadata": {"namespace": "a", "uid": "u", "generation": 2},
    "spec": {"backup": {"enabled": True}},
}


def test_a_final_backup_that_can_not_be_holds_no_removal_up(agents: Agents, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = seen(main=0, agent=None)
    assert last(gone, agents.address) == ([""], ["NoFinalBackup!"])
    # Suspended: everything was stored before it went to sleep.
    assert last(seen(main=0, agent=0), agents.address, suspended={}) == ([""], ["FinalBackupTaken"])
    assert last(seen(main=0, agent=0), agents.address) == ([""], ["NoFinalBackup!"])
    agents.silent.add("a")
    waits, said = last(seen(main=0), agents.address, turns=2)
    assert (all(waits), said) == (True, [])
    monkeypatch.setattr(backups, "SILENCE", 0.0)
    waits, said = last(seen(main=0), agents.address, turns=2)
    assert (waits[-1], set(said)) == ("", {"NoFinalBackup!"})
    agents.silent.discard("a")
    agents.slow.add("a")
    waits, said = last(seen(main=0), agents.address, turns=3)
    assert (all(waits), said) == (True, []), "it answers, and is at it"
    monkeypatch.setattr(backups, "STALLED", 0.0)
    waits, said = last(seen(main=0), agents.address, turns=2)
    assert (waits[-1], set(said)) == ("", {"NoFinalBackup!"})
    agents.slow.discard("a")
    assert last(seen(main=0), agents.address) == ([""], ["FinalBackupTaken"])


def seen(
    told: Told | None = None,
    *,
    identity: bool = True,
    ready: int = 1,
    main: int = 1,
    agent: int | None = 1,
    **options: Any,
) -> Observed:
    """Return a server with so many agents and main processes, as it is seen; None: the agent's Deployment is gone."""
    work: dict[str, Any] = {"updated": 1, "current": True, "image": "i", "selector": ""}
    children = {
        **({} if agent is None else {AGENT: child(seen=Workload(desired=agent, replicas=agent, ready=ready, **work))}),
        IDENTITY: child(seen=Certified(identity, "DoesNotExist", "The issuer is not there.")),
        Place("StatefulSet", MAIN): child(seen=Workload(desired=main, replicas=main, ready=main, **work)),
        Place("Cluster", "postgres"): child(seen=Database(1, 1, "", healthy=True, hibernated=False)),
    }
    return Observed(children, 2e9, backup=told, **options)


@pytest.mark.parametrize(
    ("moment", "found"),
    [
        (seen(), ("Unknown", "NotReported")),
        (seen(SILENT), ("Unknown", "AgentSilent")),
        (seen(WRITTEN), ("True", "Written")),
        (seen(WRITTEN, identity=False), ("False", "IdentityNotIssued")),
        (seen(Told(True, False, "words with spaces", "Somebody wrote nonsense.")), ("False", "NotWritten")),
        (seen(Told(False, reason="ImageMissing", message="It can't be fetched.")), ("False", "ImageMissing")),
    ],
    ids=["new", "silent", "written", "no identity", "nonsense", "no image"],
)
def test_backup_ready_says_why(moment: Observed, found: tuple[str, str]) -> None:
    spec = {"backup": {"enabled": True}}
    assert status._backup(spec, moment)[:2] == found
    assert status._backup({}, moment)[:2] == ("False", "NotEnabled")
    assert status._backup(spec | {"suspended": {}}, moment)[:2] == ("False", "Suspended")


def test_an_agent_that_does_not_run_is_no_trouble_of_the_server() -> None:
    moment = seen(SILENT, ready=0, identity=False)
    assert [name for name, _work in moment.workloads()] == [MAIN]
    assert status._unsettled(moment, closed=False) == []
    assert moment.certificates() == []
    assert {each["name"] for each in status._components(moment)} == {MAIN, "postgres", AGENT.name}


def test_what_sleeps_waits_for_what_is_stored() -> None:
    spec = {"suspended": {}, "backup": {"enabled": True}}
    awake, stopped = seen(), seen(main=0)
    assert not planning.must_store(spec, awake), "Synapse still writes"
    assert planning.must_store(spec, stopped)
    assert not planning.must_store({}, stopped)
    cluster = Place("Cluster", "postgres")
    waits = planning.make(spec, 1, {}, seen(main=0, stored=False))
    assert (waits.hold(cluster), waits.hold(AGENT), waits.stops) == (True, True, True)
    goes_on = planning.make(spec, 1, {}, stopped)
    assert (goes_on.hold(cluster), goes_on.hold(AGENT), goes_on.step) == (False, False, "Suspending")


def test_the_agent_gives_way_to_a_server_that_needs_the_volume_on_another_node() -> None:
    spec = {
        "synapse": {"version": "1.0.0"},
        "images": {"synapse": "i"},
        "size": {"cpu": 2, "memory": "4Gi"},
        "backup": {"enabled": True, "paused": False},
    }
    text = 'Multi-Attach error for volume "pvc-1" Volume is already used by pod(s) backup-agent-5d-x'
    event = {"reason": "FailedAttachVolume", "message": text, "involvedObject": {"kind": "Pod", "uid": "p"}}
    pending = {"metadata": {"name": "synapse-main-0", "uid": "p"}, "status": {"phase": "Pending"}}
    fault = of_attachments([event], [pending])
    assert fault is not None
    # An Event stays for an hour: it is news only while that very pod waits.
    assert of_attachments([event], [pending | {"status": {"phase": "Running"}}]) is None
    assert of_attachments([event], [{"metadata": {"uid": "q"}, "status": {"phase": "Pending"}}]) is None
    assert planning.make(spec, 1, {}, seen(diagnosis=fault)).spec["backup"]["paused"] is True
    assert planning.make(spec, 1, {}, seen()).spec["backup"]["paused"] is False
    assert status._backup(spec, seen(WRITTEN, agent=0))[:2] == ("False", "Paused")
