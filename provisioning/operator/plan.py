"""What to make of a server now: its spec, except in the middle of what must be done in steps. Pure functions.

- Upgrade: the main process first, because it alone changes the database's schema; workers follow once it answers.
  One that fails goes back to the release that ran, where the database still permits it, and says so.
- Another arrangement (who writes what): all processes stop, and once none is left the new ones start.
- Suspend: processes first, then the database hibernates. Resume: the other way round.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from provisioning.operator import arrangement, recovery
from provisioning.operator.children import Place
from provisioning.operator.observed import (
    AGENT,
    MAIN,
    VOLUME_ELSEWHERE,
    WORKLOADS,
    Fault,
    Observed,
    condition,
    is_synapse,
)

UPGRADE_LIMIT = 900.0  # seconds an upgrade may take before it goes back
MIGRATION_LIMIT = 86400.0  # and while the main process works on its database, as long as its pod is given to start
CRASHES = 4  # of the main process, before an upgrade goes back sooner
UPGRADE_FAILED = "UpgradeFailed"
UPGRADE_STUCK = "UpgradeStuck"
CONFIGURATION = Place("ConfigMap", "synapse")


def nothing(_place: Place) -> bool:
    """Hold nothing back."""
    return False


@dataclass(frozen=True)
class Plan:
    """`spec`: what the chart is given; `hold`: whose change must wait; `step`: a reason for Progressing, or nothing."""

    spec: Mapping[str, Any]
    hold: Callable[[Place], bool] = nothing
    step: str = ""
    message: str = ""
    fault: Fault | None = None
    stops: bool = False
    """Whether no process of Synapse may run."""
    recovery: Mapping[str, Any] | None = None
    """How far the server's recovery is, as its status says it."""
    copied: bool = False
    """Whether the database was made as a copy: how it was made stays said as it is."""
    copies: bool = False
    """Whether the database is to be made as a copy of what was brought back."""
    rests: bool = False
    """Whether the pod that brings it back has nothing to do."""

    def differs(self, other: Plan) -> bool:
        """Say whether something else is to be done than by another one."""
        return any(
            getattr(self, name) != getattr(other, name)
            for name in ("step", "message", "spec", "stops", "copied", "copies", "rests")
        )


def make(spec: Mapping[str, Any], generation: int, status: Mapping[str, Any], seen: Observed) -> Plan:
    """Return the plan for this moment."""
    plan = _giving_way(_made(spec, generation, status, seen), seen)
    database = seen.database()
    copied = database is not None and database.copied
    return replace(plan, recovery=recovery.progress(spec, status, seen), copied=copied)


def _giving_way(plan: Plan, seen: Observed) -> Plan:
    """Return the plan without a backup agent for as long as its node keeps the media's volume from Synapse's."""
    backup = plan.spec.get("backup") or {}
    if not backup.get("enabled") or seen.diagnosis is None or seen.diagnosis.reason != VOLUME_ELSEWHERE:
        return plan
    return replace(plan, spec={**plan.spec, "backup": {**backup, "paused": True}})


def _made(spec: Mapping[str, Any], generation: int, status: Mapping[str, Any], seen: Observed) -> Plan:
    if plan := _idle(spec, status, seen):
        return plan
    if plan := _rearrange(spec, seen):
        return plan
    release = status.get("release") or {}
    if release and _wanted(spec) != (release.get("version"), release.get("image")):
        return _upgrade(spec, generation, status, seen)
    if plan := _resume(spec, seen):
        return plan
    return Plan(spec)


def _idle(spec: Mapping[str, Any], status: Mapping[str, Any], seen: Observed) -> Plan | None:
    """Return the plan of a server that serves nobody."""
    if "suspended" in spec:
        return _suspend(spec, seen)
    if "recovery" in spec:
        return _recover(spec, status, seen)
    return _close(spec, seen) if spec.get("closed") else None


def must_count(spec: Mapping[str, Any], seen: Observed) -> bool:
    """Say whether the next step depends on how many of Synapse's pods there are."""
    waits = "suspended" not in spec and "recovery" not in spec
    return waits and seen.arrangements() == {arrangement.STOPPED} and seen.stopped()


def _rearrange(spec: Mapping[str, Any], seen: Observed) -> Plan | None:
    """Return the plan that stops all processes, where some may live that would disagree with the new ones.

    What they read stays as it is until then: one that starts again meanwhile must not have the new configuration.
    """
    there, wanted = seen.arrangements(), arrangement.of(spec)
    ended = there == {arrangement.STOPPED} and seen.stopped() and seen.pods == 0
    if ended or not (there == {arrangement.STOPPED} or any(arrangement.conflicts(each, wanted) for each in there)):
        return None
    text = "All processes stop before the new ones start, because old and new ones would disagree about who does what."
    return Plan(spec, lambda place: place == CONFIGURATION, "Rearranging", text, stops=True)


def _wanted(spec: Mapping[str, Any]) -> tuple[str, str]:
    return spec["synapse"]["version"], spec["images"]["synapse"]


def _suspend(spec: Mapping[str, Any], seen: Observed) -> Plan:
    running = [name for name, each in seen.synapses() if each.replicas]
    database = seen.database()
    if running:
        wait = f"Waiting for {', '.join(running)} to stop before the database hibernates."
        return Plan(spec, _is_asleep_last, "Suspending", wait, stops=True)
    if not seen.stored:
        wait = "The processes have stopped; what they wrote last is backed up before the database goes to sleep."
        return Plan(spec, _is_asleep_last, "Suspending", wait, stops=True)
    if database and not database.hibernated:
        text = "The processes have stopped; the database is going to sleep."
        return Plan(spec, step="Suspending", message=text, stops=True)
    return Plan(spec, stops=True)


def _recover(spec: Mapping[str, Any], status: Mapping[str, Any], seen: Observed) -> Plan:
    """Return the plan of a server that is being brought back: no process of Synapse until somebody says so."""
    found = recovery.progress(spec, status, seen)
    copies, rests = recovery.copies(spec, status), recovery.rests(found, seen)
    if found is None or found["state"] != recovery.RUNNING:
        return Plan(spec, stops=True, copies=copies, rests=rests)
    step, text = recovery.REASONS[recovery.RUNNING], recovery.sentence(found)
    return Plan(spec, step=step, message=text, stops=True, copies=copies, rests=rests)


def _close(spec: Mapping[str, Any], seen: Observed) -> Plan:
    """Return the plan of a server that nobody may use: it is closed once no pod of Synapse is left."""
    if seen.arrangements() <= {arrangement.STOPPED} and seen.stopped() and seen.pods == 0:
        return Plan(spec, stops=True)
    return Plan(spec, step="Closing", message="Waiting for all of Synapse's processes to end.", stops=True)


def must_store(spec: Mapping[str, Any], seen: Observed) -> bool:
    """Say whether the next step depends on whether everything is backed up: nothing writes any more."""
    agent, database = seen.agent(), seen.database()
    awake = agent is not None and agent.desired > 0 and database is not None and database.healthy
    return "suspended" in spec and awake and not any(each.replicas for _name, each in seen.synapses())


def _is_asleep_last(place: Place) -> bool:
    return place.kind == "Cluster" or place == AGENT


def _resume(spec: Mapping[str, Any], seen: Observed) -> Plan | None:
    main, database = seen.workload(MAIN), seen.database()
    if main is None or main.desired or database is None or database.healthy:
        return None
    return Plan(spec, _is_synapse, "Resuming", "Waiting for the database to wake before the processes start.")


def _is_synapse(place: Place) -> bool:
    return place.kind in WORKLOADS and is_synapse(place.name)


def _is_worker(place: Place) -> bool:
    return _is_synapse(place) and place.name != MAIN


def _upgrade(spec: Mapping[str, Any], generation: int, status: Mapping[str, Any], seen: Observed) -> Plan:
    release = status["release"]
    version, image = _wanted(spec)
    degraded = condition(status, "Degraded")
    told = str(degraded.get("message") or "")
    if degraded.get("reason") == UPGRADE_FAILED and degraded.get("observedGeneration") == generation:
        return _back(spec, release, Fault(UPGRADE_FAILED, told))
    fault = _failure(spec, generation, status, seen)
    possible = int(release.get("schemaVersion") or 0) >= int(spec["synapse"]["compatVersion"])
    if fault and possible:
        return _back(spec, release, fault)
    main = seen.workload(MAIN)
    moved = main is not None and main.image == image and main.settled and seen.probe is not None and seen.probe.ok
    stuck = fault and Fault(
        UPGRADE_STUCK,
        f"{fault.message} Synapse {release['version']} can't read the database any more, so there is no way back "
        "without a restore. The data is intact; restore a backup or wait for a later release.",
    )
    text = f"Synapse {version}: " + ("the workers follow." if moved else "the main process changes the database first.")
    return Plan(spec, nothing if moved else _is_worker, "Upgrading", text, stuck or None)


def _back(spec: Mapping[str, Any], release: Mapping[str, Any], fault: Fault) -> Plan:
    older = {**spec["synapse"], "version": release["version"]}
    return Plan(
        {**spec, "synapse": older, "images": {**spec["images"], "synapse": release["image"]}},
        step="",
        fault=fault,
    )


def _failure(spec: Mapping[str, Any], generation: int, status: Mapping[str, Any], seen: Observed) -> Fault | None:
    version, image = _wanted(spec)
    main = seen.workload(MAIN)
    if main is None or main.image != image:
        return None
    because = ""
    if seen.crashes >= CRASHES:
        because = f"its main process ended {seen.crashes} times"
    elif main.reason == "ProgressDeadlineExceeded":
        because = "its main process did not become ready in time"
    elif _since(status, generation, seen.now) > (limit := MIGRATION_LIMIT if seen.starting else UPGRADE_LIMIT):
        because = f"it did not answer within {limit / 60:.0f} minutes"
    if not because:
        return None
    detail = f" {seen.diagnosis.message}" if seen.diagnosis else ""
    text = f"The upgrade to Synapse {version} failed: {because}.{detail} {status['release']['version']} runs again."
    return Fault(UPGRADE_FAILED, text)


def _since(status: Mapping[str, Any], generation: int, now: float) -> float:
    """Return the seconds since this generation's upgrade began."""
    found = condition(status, "Progressing")
    if found.get("reason") != "Upgrading" or found.get("observedGeneration") != generation:
        return 0.0
    return now - dt.datetime.fromisoformat(found["lastTransitionTime"]).timestamp()
