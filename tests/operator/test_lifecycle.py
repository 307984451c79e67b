"""What is done in steps: suspend, resume, resize, upgrade and its way back."""

from __future__ import annotations

import pytest

from tests.cluster.stand_ins import HANDS_OFF
from tests.operator.homeservers import Homeservers
from tests.operator.pods import Watched
from tests.operator.process import Operator
from tests.operator.servers import DEPLOYMENT, STATEFUL, Server, Servers, large, small

pytestmark = pytest.mark.xdist_group("cluster-operator")

CLUSTER = ("postgresql.cnpg.io/v1", "Cluster")
CLAIM = ("v1", "PersistentVolumeClaim")
OLD, NEW = "images.example/synapse:v1.163.2", "images.example/synapse:v1.164.0"
UPGRADE = {
    "synapse": {"version": "1.164.0", "schemaVersion": 95, "compatVersion": 84},
    "images": {"synapse": NEW},
}


def image(found: dict[str, object]) -> str:
    return str(found["spec"]["template"]["spec"]["containers"][0]["image"])  # type: ignore[index]


@pytest.fixture
def big(operator: Operator, servers: Servers) -> Server:
    """A server with workers and a database of its own, Ready."""
    made = servers.make(large())
    made.wait_ready()
    return made


def test_suspend_and_resume(big: Server) -> None:
    big.change(suspended={"message": "Please pay."})
    found = big.wait("Ready", "False", "Suspended")
    assert "data is kept" in found["message"]
    big.wait("Progressing", "False", seconds=60)
    assert big.condition("DatabaseReady")["reason"] == "Hibernated"
    assert big.need(STATEFUL, "synapse-main")["spec"]["replicas"] == 0
    assert big.need(DEPLOYMENT, "synapse-generic")["spec"]["replicas"] == 0
    assert big.child(CLAIM, "redis"), "a suspended server keeps its volumes"
    big.change(suspended=None)
    big.wait_ready()
    assert big.need(CLUSTER, "postgres")["metadata"]["annotations"]["cnpg.io/hibernation"] == "off"
    assert big.need(STATEFUL, "synapse-main")["spec"]["replicas"] == 1


def test_processes_stop_before_the_database_sleeps_and_start_after_it_wakes(big: Server) -> None:
    cluster = big.need(CLUSTER, "postgres")
    big.change(suspended={})
    big.wait("Progressing", "False", seconds=60)
    # The database takes its time to wake now.
    cluster = big.need(CLUSTER, "postgres")
    big.api.patch(cluster, {"metadata": {"annotations": {HANDS_OFF: "true"}}})
    big.change(suspended=None)
    found = big.wait("Progressing", "True", "Resuming")
    assert "database" in found["message"]
    assert big.need(STATEFUL, "synapse-main")["spec"]["replicas"] == 0
    big.api.patch(big.need(CLUSTER, "postgres"), {"metadata": {"annotations": {HANDS_OFF: None}}})
    big.wait_ready()


def test_a_volume_grows(big: Server) -> None:
    big.change(redis={"own": {"storage": {"size": "5Gi"}}})
    big.wait_child(CLAIM, "redis", lambda each: each["status"]["capacity"]["storage"] == "5Gi")
    big.wait_ready()


def test_more_workers_do_not_touch_what_the_autoscaler_decided(big: Server) -> None:
    generic = big.need(DEPLOYMENT, "synapse-generic")
    big.api.patch(generic, {"spec": {"replicas": 2}})  # as the autoscaler does
    big.api.wait("two workers", lambda: big.status().get("replicas") == 2)
    big.change(workers={"generic": {"min": 1, "max": 4}})
    big.wait_ready()
    assert big.need(DEPLOYMENT, "synapse-generic")["spec"]["replicas"] == 2
    assert not [note for reason, note in big.events() if reason == "EditUndone"]


@pytest.mark.parametrize(
    ("before", "change"),
    [
        ({}, {"eventPersisters": 2}),
        ({"eventPersisters": 2}, {"eventPersisters": 1}),
        ({"streamWriters": {"typing": True, "receipts": True}}, {"streamWriters": {"typing": False}}),
        ({}, {"federationSenders": 3}),
    ],
)
def test_processes_that_disagree_who_writes_never_live_together(
    operator: Operator, servers: Servers, before: dict[str, object], change: dict[str, object]
) -> None:
    server = servers.make(large(workers=before, routing={"ingress": {"regex": {}}}))
    server.wait_ready()
    with Watched(server) as pods:
        server.change(workers=change)
        server.wait("Progressing", "True", "Rearranging")
        server.wait_ready(seconds=60)
    assert len(pods.configurations) == 2
    assert not pods.together
    main, generic = server.need(STATEFUL, "synapse-main"), server.need(DEPLOYMENT, "synapse-generic")
    assert main["spec"]["replicas"] == 1
    assert generic["spec"]["replicas"] >= 1
    assert {reason for reason, _note in server.events()} & {"QuotaExceeded", "EditUndone", "Restored"} == set()


def test_killed_while_processes_are_exchanged_it_still_lets_no_two_kinds_live(
    operator: Operator, servers: Servers
) -> None:
    server = servers.make(large())
    server.wait_ready()
    with Watched(server) as pods:
        server.change(workers={"eventPersisters": 2})
        server.wait_child(STATEFUL, "synapse-main", lambda each: each["spec"]["replicas"] == 0)
        operator.kill()
        operator.start()
        server.wait_ready(seconds=60)
    assert len(pods.configurations) == 2
    assert not pods.together


def test_from_one_process_to_workers_and_back_no_quota_is_hit(operator: Operator, servers: Servers) -> None:
    server = servers.make(small(size={"cpu": 4, "memory": "16Gi"}))
    server.wait_ready()
    for workers, redis in (
        ({"generic": {"min": 2, "max": 3}, "eventPersisters": 1}, {"managed": {"host": "redis.example"}}),
        ({"generic": None, "eventPersisters": 0}, None),
    ):
        with Watched(server) as pods:
            server.change(workers=workers, redis=redis)
            server.wait_ready(seconds=60)
        assert not pods.together
    assert not [note for reason, note in server.events() if reason == "QuotaExceeded"]


def test_a_smaller_size_finds_room_in_its_quota(big: Server) -> None:
    big.change(size={"memory": "8Gi"})
    big.wait_ready(seconds=60)
    assert not [note for reason, note in big.events() if reason == "QuotaExceeded"]


def test_a_change_that_all_agree_on_rolls(big: Server) -> None:
    with Watched(big) as pods:
        big.change(limits={"maxUsers": 77})
        big.wait_child(STATEFUL, "synapse-main", lambda each: each["metadata"]["generation"] == 2)
        big.wait_ready()
    assert "Rearranging" not in {reason for reason, _note in big.events()}
    assert len(pods.configurations) == 2


def test_an_answer_that_comes_a_little_late_is_no_trouble(server: Server, homeservers: Homeservers) -> None:
    homeservers.silent.add(server.namespace)
    asked = homeservers.asked[server.namespace]
    server.change(restarts=1)
    server.api.wait("two questions", lambda: homeservers.asked[server.namespace] >= asked + 2)
    assert server.condition("Progressing")["status"] == "True"
    homeservers.silent.discard(server.namespace)
    server.wait_ready()
    assert not [note for reason, note in server.events() if reason == "NotAnswering"]


def test_an_upgrade_changes_the_main_process_first(big: Server, homeservers: Homeservers) -> None:
    homeservers.silent.add(big.namespace)
    big.change(**UPGRADE)
    big.wait_child(STATEFUL, "synapse-main", lambda each: image(each) == NEW)
    found = big.wait("Progressing", "True", "Upgrading")
    assert "main process" in found["message"]
    assert image(big.need(DEPLOYMENT, "synapse-generic")) == OLD
    assert image(big.need(STATEFUL, "synapse-federation-sender")) == OLD
    homeservers.silent.discard(big.namespace)
    big.wait_child(DEPLOYMENT, "synapse-generic", lambda each: image(each) == NEW)
    big.wait_ready()
    assert big.status()["release"] == {"version": "1.164.0", "image": NEW, "schemaVersion": 95}


def crash(server: Server, times: int) -> None:
    """Let the main process look as if it had ended that often: kwok's pods never do by themselves."""
    pod = server.api.wait(
        "new pod",
        lambda: next(
            (
                each
                for each in server.api.list("v1", "Pod", server.namespace)
                if each["metadata"]["name"] == "synapse-main-0"
                and each["spec"]["containers"][0]["image"] == NEW
                # Else kwok, which has yet to say that it runs, would say so over our crash.
                and any(
                    one["type"] == "Ready" and one["status"] == "True" for one in each["status"].get("conditions") or ()
                )
            ),
            None,
        ),
    )
    state = {
        "name": "synapse", "image": NEW, "imageID": NEW, "ready": False, "restartCount": times,
        "state": {"waiting": {"reason": "CrashLoopBackOff"}},
        "lastState": {"terminated": {"exitCode": 1, "message": "Traceback\nUpgradeDatabaseException: no"}},
    }  # fmt: skip
    conditions = [{"type": "Ready", "status": "False"}, {"type": "ContainersReady", "status": "False"}]
    server.api.patch(pod, {"status": {"containerStatuses": [state], "conditions": conditions}}, sub="status")


def test_an_upgrade_that_fails_goes_back_and_says_so(big: Server, homeservers: Homeservers) -> None:
    homeservers.silent.add(big.namespace)
    big.change(**UPGRADE)
    big.wait_child(STATEFUL, "synapse-main", lambda each: image(each) == NEW)
    crash(big, 5)
    found = big.wait("Degraded", "True", "UpgradeFailed", seconds=60)
    homeservers.silent.discard(big.namespace)
    assert "UpgradeDatabaseException" in found["message"]
    assert "1.163.2 runs again" in found["message"]
    big.wait_child(STATEFUL, "synapse-main", lambda each: image(each) == OLD)
    big.wait("Ready", "True", seconds=60)
    assert image(big.need(DEPLOYMENT, "synapse-generic")) == OLD
    assert big.status()["release"]["version"] == "1.163.2"
    # It does not try again by itself; a new wish does.
    big.wait("Degraded", "True", "UpgradeFailed")
    big.change(restarts=1)
    big.wait_child(STATEFUL, "synapse-main", lambda each: image(each) == NEW)


def test_an_upgrade_whose_database_can_not_go_back_stays_and_says_so(big: Server, homeservers: Homeservers) -> None:
    homeservers.silent.add(big.namespace)
    big.change(**UPGRADE | {"synapse": {"version": "1.164.0", "schemaVersion": 95, "compatVersion": 95}})
    big.wait_child(STATEFUL, "synapse-main", lambda each: image(each) == NEW)
    crash(big, 5)
    found = big.wait("Degraded", "True", "UpgradeStuck", seconds=60)
    assert "no way back" in found["message"]
    assert image(big.need(STATEFUL, "synapse-main")) == NEW
    homeservers.silent.discard(big.namespace)
