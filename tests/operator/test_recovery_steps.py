"""What is said of a recovery in moments that are hard to meet: pure functions."""

from __future__ import annotations

from typing import Any

import pytest

from provisioning.operator import recovery
from provisioning.operator.children import Database, Place
from provisioning.operator.observed import Observed, Told
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
