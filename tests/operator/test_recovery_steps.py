"""What is said of a recovery in moments that are hard to meet: pure functions."""

from __future__ import annotations

from typing import Any

import pytest

from provisioning.operator import arrangement, recovery
from provisioning.operator import plan as planning
from provisioning.operator.children import Database, Place, Volume, Workload
from provisioning.operator.keeping import DATA, DATA_MISSING, missing
from provisioning.operator.observed import MAIN, Observed, Told, condition
from provisioning.operator.status import compute
from tests.chart.values import monolith
from tests.operator.test_pure import child

CLUSTER = Place("Cluster", "postgres")
RESULT = {"point": "p1"}
COPYING = {"revision": "v1", "mode": "restore", "state": "running", "step": "copy", "result": RESULT}


def wanted(revision: str = "v1", **more: Any) -> dict[str, Any]:
    return {"recovery": {"secret": {"revision": revision}, **more}}


def seen(*, healthy: bool | None = None, told: Told | None = None) -> Observed:
    """`healthy`: of a Cluster; None: there is none."""
    well = bool(healthy)
    database = Database(instances=1, ready=int(well), phase="Setting up", healthy=well, hibernated=False)
    return Observed({} if healthy is None else {CLUSTER: child(seen=database)}, now=0.0, recovery=told)


def says(state: str, revision: str = "v1", **more: Any) -> Told:
    return Told(True, recovery={"revision": revision, "state": state, "step": "base", **more})


def test_a_copy_goes_on_with_another_revision_and_is_done_when_the_cluster_is_healthy() -> None:
    before = {"recovery": COPYING}
    found = recovery.progress(wanted("v2"), before, seen(healthy=False, told=says("running", "v2")))
    assert found is not None
    assert (found["revision"], found["state"], found["step"], found["text"]) == ("v2", "running", "copy", "Setting up")
    assert recovery.copies(wanted("v2"), before)
    done = recovery.progress(wanted("v2"), {"recovery": found}, seen(healthy=True))
    assert done == {**COPYING, "revision": "v2", "state": "done"}


@pytest.mark.parametrize("reason", ["Recovered", "Answers"])
def test_what_is_done_is_asked_for_again_in_the_same_moment(reason: str) -> None:
    done = {**COPYING, "state": "done"}
    status = {"recovery": done, "conditions": [{"type": "Ready", "status": "False", "reason": reason}]}
    found = recovery.progress(wanted("v2"), status, seen(healthy=True))
    assert found is not None
    if reason == "Recovered":
        assert found == {**done, "revision": "v2"}
        assert recovery.progress(wanted("v2"), {**status, "recovery": found}, seen(healthy=True)) == found
    else:  # somebody has lived here since
        assert (found["state"], found["code"]) == ("failed", "NotEmpty")


def test_nothing_is_copied_before_it_is_written_down_that_there_is_something() -> None:
    found = recovery.progress(wanted(), {}, seen(told=says("serving", result=RESULT)))
    assert found is not None
    assert (found["step"], found["result"]) == ("copy", RESULT)
    assert not recovery.copies(wanted(), {})
    assert recovery.copies(wanted(), {"recovery": found})


def test_a_pod_of_an_earlier_revision_says_nothing_of_this_one() -> None:
    found = recovery.progress(wanted("v2"), {}, seen(told=says("failed", "v1", code="KeysAway")))
    assert found == {"revision": "v2", "mode": "restore", "state": "running", "step": "begin"}


@pytest.mark.parametrize("step", ["base", "copy"])
def test_a_cancelled_one_goes_on_from_where_it_was(step: str) -> None:
    before = {"recovery": {**COPYING, "step": step}}
    found = recovery.progress(wanted("v2", cancelled=True), before, seen())
    assert found is not None
    assert (found["state"], found.get("step") == "copy") == ("cancelled", step == "copy")
    again = recovery.progress(wanted("v3"), {"recovery": found}, seen())
    assert again is not None
    assert (again["state"], again["step"]) == ("running", "copy" if step == "copy" else "begin")


def test_what_a_pod_says_may_be_anything() -> None:
    strange = says("running", done_bytes=-5, total_bytes=2**70, seconds_left="soon", code=7, text=["x"] * 9999)
    found = recovery.progress(wanted(), {}, seen(told=strange))
    assert found is not None
    assert not {"doneBytes", "totalBytes", "secondsLeft"} & set(found)
    assert len(found["text"]) <= recovery.LONGEST


def at_rest(data: dict[Place, Any], *, closed: bool = True) -> tuple[str, str, str]:
    """Ready's reason, Progressing and Degraded's reason of a server without processes. `data`: its database, volume."""
    spec = monolith() | ({"closed": True} if closed else {})
    none = Workload(desired=0, replicas=0, updated=0, ready=0, current=True, image="", selector="")
    children = {Place("StatefulSet", MAIN): child(seen=none, arrangement=arrangement.STOPPED)}
    children |= {place: child(seen=each) for place, each in data.items()}
    found = Observed(children, now=2e9, pods=0, faults=missing(DATA.keys() - data.keys()))
    release = {"version": spec["synapse"]["version"], "image": spec["images"]["synapse"]}
    server = {"metadata": {"generation": 2}, "spec": spec, "status": {"release": release}}
    told = compute(server, planning.make(spec, 2, server["status"], found), found)
    ready, moves, ill = (condition(told, each) for each in ("Ready", "Progressing", "Degraded"))
    return ready["reason"], moves["status"], ill["reason"]


@pytest.mark.parametrize("healthy", [True, False])
@pytest.mark.parametrize("grows", [True, False])
def test_a_closed_server_is_at_rest_whatever_its_data_are_like(healthy: bool, grows: bool) -> None:
    database = Database(instances=1, ready=int(healthy), phase="x", healthy=healthy, hibernated=False)
    volume = Volume(phase="Bound", storage_class="s", growing=grows)
    whole: dict[Place, Any] = {CLUSTER: database, Place("PersistentVolumeClaim", "media"): volume}
    assert at_rest(whole) == ("Closed", "False", "AsExpected")
    assert at_rest({**whole, CLUSTER: None}) == ("Closed", "False", "AsExpected")  # its controller has said nothing yet
    assert (at_rest(whole, closed=False)[1] == "False") == (healthy and not grows)


@pytest.mark.parametrize("gone", sorted(DATA))
def test_a_closed_server_whose_data_is_gone_is_at_rest_and_says_so(gone: Place) -> None:
    database = Database(instances=1, ready=1, phase="x", healthy=True, hibernated=False)
    whole: dict[Place, Any] = {CLUSTER: database, Place("PersistentVolumeClaim", "media"): None}
    left = {place: each for place, each in whole.items() if place != gone}
    assert at_rest(left) == ("Closed", "False", DATA_MISSING)
    assert at_rest(left, closed=False)[0] == DATA_MISSING
