"""Parts of the operator that need no API server: what to write, which fields cover what, whose turn it is."""

from __future__ import annotations

import asyncio
import datetime as dt
from pathlib import Path
from typing import Any

import pytest
import uvloop
import yaml
from hypothesis import given
from hypothesis import strategies as st

from provisioning.operator import arrangement
from provisioning.operator import plan as planning
from provisioning.operator.children import KEEPS, Place, Workload
from provisioning.operator.diagnosis import of_events, of_pods
from provisioning.operator.differences import Cause, Wanted, compare
from provisioning.operator.kube.access import AccessError, InCluster, Kubeconfig
from provisioning.operator.kube.errors import from_answer, from_status
from provisioning.operator.kube.fingerprint import Shapes, additions, claimed, covers, union
from provisioning.operator.kube.queue import WorkQueue
from provisioning.operator.observed import MAIN, Observed
from provisioning.operator.ownership import stamp
from provisioning.operator.probe import Prober
from provisioning.operator.render import split
from provisioning.operator.store import Child
from tests.chart.values import changed

SERVICE, CLAIM = Place("Service", "a"), Place("PersistentVolumeClaim", "media")


def child(digest: str = "d", **options: Any) -> Child:
    """Return a live child that is as applied."""
    base: dict[str, Any] = {"uid": "u", "version": 1, "fingerprint": 7, "deleting": False, "owner": "o", "accepted": 7}
    return Child(digest=stamp(digest), **base | options)


def causes(wanted: list[Wanted], live: dict[Place, Child], **options: Any) -> dict[Place, Cause]:
    found = compare(
        wanted, live, owner="o", untouched=lambda _place, held: held.accepted == held.fingerprint, **options
    )
    return {each.place: each.cause for each in found.writes}


def test_what_must_be_written() -> None:
    wanted = [Wanted(SERVICE, "d")]
    assert causes(wanted, {SERVICE: child()}) == {}
    assert causes(wanted, {}) == {SERVICE: Cause.NEW}
    assert causes(wanted, {}, was=[SERVICE]) == {SERVICE: Cause.DELETED}
    assert causes(wanted, {SERVICE: child("other")}) == {SERVICE: Cause.CHANGED}
    assert causes(wanted, {SERVICE: child("other")}, hold=lambda _place: True) == {}
    assert causes(wanted, {SERVICE: child(fingerprint=8)}) == {SERVICE: Cause.EDITED}
    assert causes(wanted, {SERVICE: child(fingerprint=8)}, hold=lambda _place: True) == {SERVICE: Cause.EDITED}
    assert causes(wanted, {SERVICE: child(owner="")}) == {SERVICE: Cause.EDITED}
    assert causes(wanted, {SERVICE: child(deleting=True)}) == {}


@pytest.mark.parametrize(
    ("keys", "found"),
    [
        (["ed25519:a_Own"], "ed25519:a_Own"),
        (["ed25519:a_Older", "ed25519:a_Own"], "ed25519:a_Own"),
        (["ed25519:a_Other"], "ed25519:a_Other"),
    ],
)
def test_a_server_with_an_older_key_too_is_still_the_right_one(keys: list[str], found: str) -> None:
    spec = {"serverName": "alice.example", "secret": {"signingKeyId": "ed25519:a_Own"}}
    answer = {"server_name": "alice.example", "verify_keys": {key: {} for key in keys}}
    assert Prober._key(answer, spec) == found


def test_data_of_a_server_that_was_ready_are_never_made_anew() -> None:
    database = Place("Cluster", "postgres")
    asked: dict[str, Any] = {"owner": "o", "untouched": lambda *_: True, "established": True}
    wanted = [Wanted(database, "d"), Wanted(SERVICE, "d")]
    found = compare(wanted, {}, **asked)
    assert [each.place for each in found.writes] == [SERVICE]
    assert (found.lost, found.unsure) == ((database,), ())
    found = compare(wanted, {}, **asked, told=lambda kind: kind != "Cluster")
    assert (found.lost, found.unsure) == ((), (database,))
    assert not compare(wanted, {database: child(), SERVICE: child()}, **asked)


@pytest.mark.parametrize(
    ("started", "restarts", "state", "starting"),
    [
        (False, 0, "running", True),
        (True, 0, "running", False),
        (False, 1, "running", False),
        (False, 0, "waiting", False),
    ],
)
def test_a_main_process_that_starts_may_change_its_database(
    started: bool, restarts: int, state: str, starting: bool
) -> None:
    container = {"name": "synapse", "started": started, "restartCount": restarts, "state": {state: {}}}
    pod: dict[str, Any] = {"metadata": {"name": "synapse-main-0"}, "status": {"containerStatuses": [container]}}
    assert of_pods([pod]).starting is starting
    pod["metadata"]["name"] = "synapse-generic-0"
    assert not of_pods([pod]).starting


@pytest.mark.parametrize(
    ("hours", "starting", "back"), [(0.2, False, False), (0.3, False, True), (20, True, False), (25, True, True)]
)
def test_an_upgrade_goes_back_only_when_nothing_works_on_it(hours: float, starting: bool, back: bool) -> None:
    now, begun = 2_000_000_000.0, dt.datetime.fromtimestamp(2_000_000_000 - hours * 3600, dt.UTC)
    spec = {"synapse": {"version": "2.0.0", "compatVersion": 90, "schemaVersion": 95}, "images": {"synapse": "new"},
            "size": {"cpu": 2, "memory": "4Gi"}}  # fmt: skip
    progressing = {"type": "Progressing", "status": "True", "reason": "Upgrading", "observedGeneration": 2,
                   "lastTransitionTime": begun.strftime("%Y-%m-%dT%H:%M:%SZ")}  # fmt: skip
    release = {"version": "1.0.0", "image": "old", "schemaVersion": 94}
    main = Workload(desired=1, replicas=1, updated=1, ready=0, current=True, image="new", selector="")
    seen = Observed({Place("StatefulSet", MAIN): child(seen=main)}, now, starting=starting)
    plan = planning.make(spec, 2, {"release": release, "conditions": [progressing]}, seen)
    assert bool(plan.fault) is back
    assert plan.spec["images"]["synapse"] == ("old" if back else "new")


def test_data_are_never_pruned() -> None:
    found = compare([], {SERVICE: child(), CLAIM: child()}, owner="o", untouched=lambda *_: True)
    assert found.surplus == (SERVICE,)
    assert found.kept == (CLAIM,)
    assert "Cluster" in KEEPS


def test_another_servers_children_are_left_alone() -> None:
    assert not compare([], {SERVICE: child(owner="another")}, owner="o", untouched=lambda *_: True)


FIELDS = {
    "f:metadata": {"f:labels": {"f:a": {}}, "f:annotations": {"f:b": {}}},
    "f:spec": {
        "f:selector": {},
        "f:ports": {'k:{"port":80,"protocol":"TCP"}': {".": {}, "f:port": {}, "f:name": {}}},
        "f:finalizers": {'v:"x"': {}},
    },
}
OBJECT = {
    "apiVersion": "v1",
    "kind": "Service",
    "metadata": {"name": "a", "labels": {"a": "1"}, "annotations": {"b": "2"}},
    "spec": {"selector": {"any": "thing"}, "ports": [{"port": 80, "name": "http"}], "finalizers": ["x"]},
}


def test_fields_cover_an_object() -> None:
    assert covers(OBJECT, FIELDS)


@pytest.mark.parametrize(
    "path",
    [("f:metadata", "f:labels"), ("f:spec", "f:selector"), ("f:spec", "f:ports"), ("f:spec", "f:finalizers"),
     ("f:spec", "f:ports", 'k:{"port":80,"protocol":"TCP"}', "f:name")],
)  # fmt: skip
def test_a_field_that_somebody_took_is_missed(path: tuple[str, ...]) -> None:
    fields = yaml.safe_load(yaml.safe_dump(FIELDS))
    below = fields
    for part in path[:-1]:
        below = below[part]
    del below[path[-1]]
    assert not covers(OBJECT, fields)


def entry(manager: str, fields: dict[str, Any], operation: str = "Update", **options: str) -> dict[str, Any]:
    return {"manager": manager, "operation": operation, "fieldsV1": fields, **options}


def test_what_others_add_is_found_and_can_be_claimed() -> None:
    ours = entry("hearth-operator", {"f:spec": {"f:a": {}}}, "Apply")
    theirs = entry("kubectl-edit", {"f:metadata": {"f:labels": {"f:x": {}}}, "f:spec": {"f:b": {}, "f:replicas": {}}})
    status = entry("a-controller", {"f:spec": {"f:c": {}}}, subresource="status")
    quiet = entry("kube-controller-manager", {"f:spec": {"f:d": {}}})
    metadata = {"managedFields": [ours, theirs, status, quiet]}
    assert additions(metadata) == {"f:spec": {"f:b": {}}}
    found = claimed(metadata)
    assert found[0]["fieldsV1"] == {"f:spec": {"f:a": {}, "f:b": {}}}
    assert found[1]["fieldsV1"] == {"f:metadata": {"f:labels": {"f:x": {}}}, "f:spec": {"f:replicas": {}}}
    assert found[2:] == [status, quiet]
    shapes = Shapes()
    assert shapes.of(metadata) != shapes.of({"managedFields": [ours]})
    assert shapes.of({"managedFields": [theirs]}) == 0


def test_the_same_child_of_two_servers_has_one_shape() -> None:
    shapes = Shapes()

    def of(uid: str) -> int:
        fields: dict[str, Any] = {"f:metadata": {"f:ownerReferences": {f'k:{{"uid":"{uid}"}}': {}}}}
        entries = [entry("hearth-operator", fields, "Apply")]
        return shapes.of({"ownerReferences": [{"uid": uid}], "managedFields": entries})

    assert of("one") == of("two")
    assert len(shapes) == 1


trees: st.SearchStrategy[dict[str, Any]] = st.recursive(
    st.just({}), lambda below: st.dictionaries(st.sampled_from("abc"), below, max_size=3), max_leaves=8
)


@given(trees, trees)
def test_a_union_holds_both(one: dict[str, Any], other: dict[str, Any]) -> None:
    def holds(whole: dict[str, Any], part: dict[str, Any]) -> bool:
        return all(key in whole and holds(whole[key], below) for key, below in part.items())

    assert holds(union(one, other), one)
    assert holds(union(one, other), other)


def test_a_key_is_worked_on_once_at_a_time_and_wishes_are_one() -> None:
    async def run() -> None:
        queue = WorkQueue()
        for _each in range(3):
            queue.add("a")
        assert await queue.get() == "a"
        queue.add("a")
        queue.add("b")
        assert await queue.get() == "b"
        queue.done("a")
        assert await queue.get() == "a"
        queue.done("a")
        assert len(queue) == 0

    asyncio.run(run())


def test_who_waits_is_not_starved_by_the_urgent() -> None:
    async def run() -> list[str]:
        queue = WorkQueue()
        queue.add("patient")
        for number in range(20):
            queue.add(f"urgent-{number}", urgent=True)
        return [await queue.get() for _each in range(6)]

    assert "patient" in asyncio.run(run())


def test_urgent_wishes_come_first() -> None:
    async def run() -> str:
        queue = WorkQueue()
        for number in range(5):
            queue.add(f"patient-{number}")
        queue.add("patient-4", urgent=True)
        return await queue.get()

    assert asyncio.run(run()) == "patient-4"


def test_the_pause_after_failures_grows_and_is_forgotten() -> None:
    async def run() -> list[float]:
        queue = WorkQueue(first=1, longest=30)
        found = [queue.failed("a") for _each in range(8)]
        queue.succeeded("a")
        found.append(queue.failed("a"))
        queue.forget("a")
        return found

    found = asyncio.run(run())
    assert found[0] <= 1
    assert 20 < found[-2] <= 30
    assert found[-1] <= 1


def test_two_wishes_for_at_once_are_one_with_the_loop_that_the_operator_runs_on() -> None:
    async def run() -> str:
        queue = WorkQueue()
        queue.add_after("a", 60)
        queue.add_after("a", 0)
        queue.add_after("a", 0)
        queue.add_after("a", 60)
        return await asyncio.wait_for(queue.get(), 10)

    assert uvloop.run(run()) == "a"


def test_helms_text_is_split_as_the_helper_does() -> None:
    text = "---\n# Source: a/templates/x.yaml\nkind: A\n---\n# Source: a/templates/y.yaml\n# nothing\n---\nkind: B\n"
    documents = list(split(text, set()))
    assert [each.found for each in documents] == [{"kind": "A"}, {"kind": "B"}]
    assert [each.found for each in split(text, {documents[0].digest})] == [None, {"kind": "B"}]


def test_errors_say_what_they_are() -> None:
    assert from_answer(429, b"slow down", "3").retry_after == 3
    assert from_answer(502, b"<html>").passing
    assert from_status({"code": 410, "reason": "Expired", "message": "too old"}).expired
    assert not from_answer(422, b'{"kind":"Status","code":422,"reason":"Invalid"}').passing


def test_a_secret_that_lacks_a_key_is_named() -> None:
    state = {"waiting": {"reason": "CreateContainerConfigError", "message": "couldn't find key macaroon"}}
    pod = {
        "metadata": {"name": "synapse-main-0"},
        "status": {"containerStatuses": [{"state": state, "restartCount": 2}]},
    }
    found = of_pods([pod])
    assert found.fault is not None
    assert found.fault.reason == "SecretIncomplete"
    assert "macaroon" in found.fault.message
    assert found.crashes == 2


def refusal(name: str, when: str) -> dict[str, Any]:
    about, text = {"name": name}, f"create Pod {name}-0 failed: exceeded quota: server"
    return {"reason": "FailedCreate", "message": text, "involvedObject": about, "lastTimestamp": when}


@pytest.mark.parametrize(
    ("replicas", "when", "counts"),
    [(0, "2026-01-02T00:00:00Z", True), (0, "2026-01-01T00:00:00Z", False), (1, "2026-01-02T00:00:00Z", False)],
)
def test_a_refusal_counts_while_pods_lack_and_after_the_last_change(replicas: int, when: str, counts: bool) -> None:
    work = Workload(1, replicas, replicas, replicas, True, "", "", changed="2026-01-01T12:00:00Z")
    assert bool(of_events([refusal("synapse-main", when)], {"synapse-main": work})) is counts
    assert of_events([refusal("synapse-main", when)], {"synapse-media": work}) is None


WORKERS = {"size": {"cpu": 4, "memory": "16Gi"}, "workers": {"generic": {"min": 1, "max": 3}, "federationSenders": 1}}


@pytest.mark.parametrize(
    ("change", "stops"),
    [
        ({}, False),
        ({"workers": {"generic": {"min": 2, "max": 5}}}, False),
        ({"size": {"cpu": 8, "memory": "32Gi"}}, False),
        ({"size": {"memory": "8192Mi"}}, True),
        ({"size": {"cpu": 2}}, True),
        ({"workers": {"federationSenders": 2}}, True),
        ({"workers": {"eventPersisters": 1}}, True),
        ({"workers": {"mediaRepositories": 1}}, True),
        ({"workers": {"streamWriters": {"typing": True}}}, True),
        ({"workers": {"generic": None, "federationSenders": 0}}, True),
    ],
)
def test_which_changes_stop_all_processes_first(change: dict[str, Any], stops: bool) -> None:
    before, after = arrangement.of(WORKERS), arrangement.of(changed(WORKERS, change))
    assert arrangement.conflicts(before, after) is stops
    assert not arrangement.conflicts("", after)
    assert not arrangement.conflicts(arrangement.STOPPED, after)


def test_one_process_changes_its_size_without_a_word() -> None:
    alone = changed(WORKERS, {"workers": None})
    assert not arrangement.conflicts(arrangement.of(alone), arrangement.of(changed(alone, {"size": {"cpu": 2}})))
    assert arrangement.conflicts(arrangement.of(alone), arrangement.of(WORKERS))


def test_a_quota_that_is_still_being_counted_is_asked_again_soon() -> None:
    text = "pods is forbidden: status unknown for quota: server, resources: pods"
    assert from_status({"code": 403, "reason": "Forbidden", "message": text}).passing
    assert not from_status({"code": 403, "reason": "Forbidden", "message": "exceeded quota: server"}).passing


def kubeconfig(folder: Path, user: dict[str, Any], **cluster: Any) -> Path:
    place = folder / "kubeconfig"
    whole = {
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
        "clusters": [{"name": "k", "cluster": {"server": "http://127.0.0.1:1", **cluster}}],
        "users": [{"name": "u", "user": user}],
    }
    place.write_text(yaml.safe_dump(whole))
    return place


def test_a_kubeconfigs_token_is_read_and_never_shown(tmp_path: Path) -> None:
    found = Kubeconfig(kubeconfig(tmp_path, {"token": "very-secret"})).load()
    assert found.headers == {"Authorization": "Bearer very-secret"}
    assert "very-secret" not in repr(found)


@pytest.mark.parametrize(
    ("user", "cluster"),
    [
        ({"exec": {"command": "aws"}}, {}),
        ({"username": "a", "password": "b"}, {}),
        ({}, {"server": "https://127.0.0.1:1", "insecure-skip-tls-verify": True}),
        ({}, {"server": "https://127.0.0.1:1", "certificate-authority-data": "not base64!"}),
        ({}, {"server": ""}),
    ],
)
def test_a_kubeconfig_that_will_not_do(tmp_path: Path, user: dict[str, Any], cluster: dict[str, Any]) -> None:
    with pytest.raises(AccessError):
        Kubeconfig(kubeconfig(tmp_path, user, **cluster)).load()


def test_no_pod_no_account(tmp_path: Path) -> None:
    with pytest.raises(AccessError, match="KUBECONFIG"):
        InCluster(tmp_path, {})
