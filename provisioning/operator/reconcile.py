"""One server's turn: look, plan, render if need be, write what differs, ask the server, write its status.

Level-triggered: a turn starts from what is there now, never from what has happened, so it can be cut off anywhere.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from provisioning.operator import arrangement
from provisioning.operator import plan as planning
from provisioning.operator.backups import Backups
from provisioning.operator.children import BUILT_IN, KINDS, SERVERS, Place, Workload
from provisioning.operator.diagnosis import Diagnosis, diagnose
from provisioning.operator.differences import Differences, compare
from provisioning.operator.finalbackup import FinalBackup
from provisioning.operator.keeping import established, missing, unseen
from provisioning.operator.kube.client import METADATA_LIST, WHOLE, Client
from provisioning.operator.kube.errors import ApiError
from provisioning.operator.kube.kinds import PODS
from provisioning.operator.metrics import Metrics
from provisioning.operator.notices import Notices
from provisioning.operator.observed import MAIN, Fault, Observed, Probe, condition
from provisioning.operator.ownership import Owner, body
from provisioning.operator.probe import Prober
from provisioning.operator.reasons import of_api_error, of_render_error
from provisioning.operator.recoveries import AGAIN, Recoveries
from provisioning.operator.recovery import REASONS, RUNNING
from provisioning.operator.render import RenderError, RenderUnavailableError
from provisioning.operator.rendering import Asked, Rendering
from provisioning.operator.status import compute
from provisioning.operator.store import Store
from provisioning.operator.writing import Writer

log = logging.getLogger(__name__)

FINALIZER = "hearth.host/final-backup"
SERVER_LABEL = "hearth.host/server"
RECOVERING = REASONS[RUNNING]
FIRST = 4.0  # seconds after its parts are written in which a new server that is well need not say that it is being made
COUNTING = 10.0  # seconds after a change in which the cluster may not have counted what a larger quota allows
MINOR = 5.0  # seconds between two writes of a status in which only counts or sentences have changed


@dataclass(frozen=True)
class Pace:
    """How patient the operator is, in seconds."""

    diagnose_after: float = 15.0
    diagnose_again: float = 30.0
    probe_again: float = 300.0
    probe_retry: float = 2.0


@dataclass(slots=True)
class Memory:
    """What is remembered of a server between its turns. Losing it costs a render and a probe, never a write."""

    uid: str = ""
    probe: Probe | None = None
    probed: tuple[Any, ...] = ()
    """The state of the server that the probe belongs to."""
    probe_due: float = 0.0
    silent_since: float = 0.0
    """When the first of the probes was begun that have all failed since, by the monotonic clock; 0 when none has."""
    unsettled_since: float = 0.0
    diagnosed_at: float = 0.0
    diagnosis: Diagnosis = field(default_factory=lambda: Diagnosis(None))
    told_at: float = 0.0
    changed_at: float = 0.0
    made_at: float = 0.0
    """When all its parts had been written once."""
    generation: int = 0
    begun: int = 0
    """The last generation that something was written for, or nothing had to be."""


class Outcome(Exception):
    """The turn could not be done; it comes again after a back-off of at most `longest` seconds."""

    def __init__(self, message: str, *, longest: float = 120.0) -> None:
        super().__init__(message)
        self.longest = longest


class Reconciler:
    """Takes turns. `later` asks for another turn of a namespace in some seconds."""

    def __init__(
        self,
        *,
        client: Client,
        store: Store,
        rendering: Rendering,
        writer: Writer,
        prober: Prober,
        notices: Notices,
        metrics: Metrics,
        backups: Backups,
        recoveries: Recoveries,
        later: Callable[[str, float], None],
        pace: Pace,
    ) -> None:
        self._client, self._store, self._rendering, self._writer = client, store, rendering, writer
        self._prober, self._notices, self._metrics = prober, notices, metrics
        self._backups, self._recoveries, self._later, self._pace = backups, recoveries, later, pace
        self._final_backup: FinalBackup = backups.final
        self._memories: dict[str, Memory] = {}

    async def turn(self, namespace: str) -> None:
        """Bring one server closer to what it should be."""
        server = self._store.server(namespace)
        if server is None:
            self._forget(namespace)
            return
        memory = self._memory(server)
        if server["metadata"].get("deletionTimestamp"):
            await self._delete(server)
            return
        if FINALIZER not in (server["metadata"].get("finalizers") or ()):
            await self._mark(server)
        seen, plan = await self._carry_out(server, memory)
        await self._tell(server, plan, seen, memory)

    async def _carry_out(self, server: dict[str, Any], memory: Memory) -> tuple[Observed, planning.Plan]:
        """Write what differs, and return what is there afterwards with the plan that was followed."""
        namespace = server["metadata"]["namespace"]
        before = await self._learn(server, self._look(server, memory))
        plan = self._plan(server, before)
        found, faults, fault = await self._attempt(server, plan, memory)
        if any(self._defined(each) for each in found.unsure):
            raise Outcome("it is not known yet whether the server's data is there", longest=2)
        uncounted = faults and {each.reason for each in faults.values()} == {"QuotaExceeded"}
        if uncounted and time.monotonic() - memory.changed_at < COUNTING:
            raise Outcome("the cluster may not have counted yet what the quota allows now", longest=2)
        memory.made_at = memory.made_at or time.monotonic()
        await self._examine(server, memory)
        seen = self._look(server, memory, faults=faults, fault=fault, found=found)
        backup, again = await self._backups.look(server, seen)
        if again:
            self._later(namespace, again)
        seen = replace(seen, pods=before.pods, stored=before.stored, backup=backup, recovery=before.recovery)
        if faults or fault:
            self._metrics.failures.inc()
            self._later(namespace, random.uniform(20, 40) if not found.waiting else 1.0)  # noqa: S311 (spreads load)
        elif found.waiting or (plan.stops and plan.step):
            self._later(namespace, 1.0)
        now = self._plan(server, seen)
        # The message too: in an upgrade it says which of the processes may change now.
        if now.differs(plan):
            self._later(namespace, 0.0)
        elif now.step == RECOVERING:
            self._later(namespace, AGAIN)
        return seen, now

    async def _learn(self, server: dict[str, Any], seen: Observed) -> Observed:
        """Ask for what the next step depends on and no watch tells."""
        if planning.must_store(server["spec"], seen):
            seen = replace(seen, stored=await self._backups.all_stored(server))
        if planning.must_count(server["spec"], seen):
            seen = replace(seen, pods=await self._count(server["metadata"]["namespace"]))
        if "recovery" in server["spec"]:
            seen = replace(seen, recovery=await self._recoveries.look(server, seen))
        return seen

    async def _attempt(
        self, server: dict[str, Any], plan: planning.Plan, memory: Memory
    ) -> tuple[Differences, Mapping[Place, Fault], Fault | None]:
        """Write what differs; return it with what was refused, of single children and of the whole."""
        try:
            return *await self._write(server, plan, memory), None
        except RenderError as error:
            return Differences((), (), ()), {}, of_render_error(error)
        except RenderUnavailableError as error:
            raise Outcome(str(error), longest=5) from error
        except ApiError as error:
            if error.passing:
                raise Outcome(str(error), longest=4) from error
            return Differences((), (), ()), {}, of_api_error(error)

    async def _count(self, namespace: str) -> int:
        """Return how many of Synapse's pods there are, those included that are ending."""
        found = await self._client.list(
            PODS, namespace, selector=arrangement.SYNAPSE, accept=METADATA_LIST, newest=True
        )
        return len(found.get("items") or ())

    def _plan(self, server: Mapping[str, Any], seen: Observed) -> planning.Plan:
        generation = int(server["metadata"].get("generation") or 0)
        return planning.make(server["spec"], generation, server.get("status") or {}, seen)

    async def _write(
        self, server: dict[str, Any], plan: planning.Plan, memory: Memory
    ) -> tuple[Differences, Mapping[Place, Fault]]:
        metadata = server["metadata"]
        namespace = metadata["namespace"]
        owner = Owner(namespace, metadata["name"], metadata["uid"])
        async with self._rendering.of(owner, _asked(server, plan)) as rendered:
            found = compare(
                rendered.wanted,
                self._store.children(namespace),
                owner=owner.uid,
                untouched=rendered.untouched,
                was=rendered.before,
                hold=plan.hold,
                established=established(server),
                told=self._store.told,
            )
            faults = missing(found.lost) | unseen(each for each in found.unsure if not self._defined(each))
            if found:
                urgent = memory.begun != memory.generation
                faults |= await self._writer.carry_out(server, owner, found, rendered, urgent=urgent)
            memory.begun = memory.generation
            if not faults and not found.unsure:
                rendered.settle()
            return found, faults

    def _defined(self, place: Place) -> bool:
        return KINDS[place.kind].group in BUILT_IN or KINDS[place.kind].definition in self._store.definitions

    def _look(
        self,
        server: Mapping[str, Any],
        memory: Memory,
        *,
        faults: Mapping[Place, Fault] | None = None,
        fault: Fault | None = None,
        found: Differences | None = None,
    ) -> Observed:
        return Observed(
            children=self._store.children(server["metadata"]["namespace"]),
            now=time.time(),
            probe=memory.probe,
            diagnosis=memory.diagnosis.fault,
            crashes=memory.diagnosis.crashes,
            starting=memory.diagnosis.starting,
            faults=faults or {},
            fault=fault,
            kept=found.kept if found else (),
            pending=len(found.waiting) if found else 0,
        )

    async def _examine(self, server: dict[str, Any], memory: Memory) -> None:
        """Ask the server, where it runs; where it does not come up, find out why."""
        namespace = server["metadata"]["namespace"]
        seen = self._look(server, memory)
        main = seen.workload(MAIN)
        if main is not None and main.settled and main.desired:
            await self._probe(server, memory, main)
        else:
            memory.silent_since = 0.0
            if main is None or not main.ready:
                memory.probe, memory.probed = None, ()
        if all(each.settled for _name, each in seen.workloads()):
            memory.unsettled_since, memory.diagnosis = 0.0, Diagnosis(None)
            return
        now = time.monotonic()
        memory.unsettled_since = memory.unsettled_since or now
        due = max(memory.unsettled_since + self._pace.diagnose_after, memory.diagnosed_at + self._pace.diagnose_again)
        if now < due:
            self._later(namespace, due - now)
            return
        memory.diagnosed_at = now
        self._later(namespace, self._pace.diagnose_again)
        try:
            memory.diagnosis = await diagnose(self._client, namespace, dict(seen.workloads()))
        except ApiError as error:
            log.info("%s: the pods could not be read: %s", namespace, error)

    async def _probe(self, server: dict[str, Any], memory: Memory, main: Workload) -> None:
        state = (main.image, main.selector, server["metadata"].get("generation"))
        if memory.probe is None or memory.probed != state or time.monotonic() >= memory.probe_due:
            begun = time.monotonic()
            found = await self._prober.ask(server)
            memory.silent_since = 0.0 if found.ok else memory.silent_since or begun
            since = 0.0 if found.ok else time.monotonic() - memory.silent_since
            memory.probe, memory.probed = replace(found, since=since), state
            pause = self._pace.probe_again if memory.probe.ok else self._pace.probe_retry
            memory.probe_due = time.monotonic() + pause * random.uniform(1.0, 1.3)  # noqa: S311 (spreads load)
        # A turn asks again for whatever it waits for: of several wishes only the earliest is kept.
        self._later(server["metadata"]["namespace"], max(0.01, memory.probe_due - time.monotonic()))

    async def _tell(self, server: dict[str, Any], plan: planning.Plan, seen: Observed, memory: Memory) -> None:
        """Write the status if it is not what is there already."""
        before = server.get("status") or {}
        status = compute(server, plan, seen)
        if same(status, before):
            return
        namespace = server["metadata"]["namespace"]
        if not before and condition(status, "Progressing")["status"] == "True" and not seen.troubled:
            wait = memory.made_at + FIRST - time.monotonic()
        else:
            wait = memory.told_at + MINOR - time.monotonic() if outline(status) == outline(before) else 0.0
        if wait > 0:
            self._later(namespace, wait)
            return
        metadata = {key: server["metadata"][key] for key in ("name", "namespace", "uid")}
        whole = {"apiVersion": SERVERS.api_version, "kind": SERVERS.name, "metadata": metadata, "status": status}
        try:
            answer = await self._client.apply(
                SERVERS, namespace, server["metadata"]["name"], body(whole), subresource="status", accept=WHOLE
            )
        except ApiError as error:
            if error.status in {404, 409}:  # gone, or another one of the same name
                return
            raise Outcome(f"the status could not be written: {error}", longest=4) from error
        self._store.take_server(answer, written=True)
        memory.told_at = time.monotonic()
        self._announce(server, status, memory)

    def _announce(self, server: dict[str, Any], status: Mapping[str, Any], memory: Memory) -> None:
        before = server.get("status") or {}
        was, now = condition(before, "Ready"), condition(status, "Ready")
        if now["status"] != was.get("status") and (now["status"] == "True" or was):
            self._notices.tell(server, now["reason"], now["message"] or now["reason"], warn=now["status"] == "False")
            if now["status"] == "True":
                self._metrics.ready_after.observe(max(0.0, time.monotonic() - memory.changed_at))
        was, now = condition(before, "Degraded"), condition(status, "Degraded")
        if now["status"] == "True" and now["reason"] != was.get("reason"):
            self._notices.tell(server, now["reason"], now["message"], warn=True)
        was, now = condition(before, "Progressing"), condition(status, "Progressing")
        if now["status"] == "True" and was and now["reason"] != was.get("reason"):
            self._notices.tell(server, now["reason"], now["message"])

    async def _mark(self, server: dict[str, Any]) -> None:
        held = server["metadata"].get("finalizers") or []
        await self._finalizers(server, [*held, FINALIZER])

    async def _finalizers(self, server: dict[str, Any], finalizers: list[str]) -> None:
        metadata = server["metadata"]
        change = {"finalizers": finalizers, "uid": metadata["uid"], "resourceVersion": metadata["resourceVersion"]}
        try:
            answer = await self._client.merge(SERVERS, metadata["namespace"], metadata["name"], {"metadata": change})
        except ApiError as error:
            if error.status == 404:
                return
            # Somebody else wrote in between: the watch tells, and the next turn reads what they wrote.
            passing = error.passing or error.status == 409
            raise Outcome(f"the finalizer could not be written: {error}", longest=4 if passing else 120) from error
        metadata["resourceVersion"] = answer["metadata"]["resourceVersion"]
        metadata["finalizers"] = finalizers

    async def _delete(self, server: dict[str, Any]) -> None:
        """Make the last backup, remove what no owner reference reaches, then let the MatrixServer go."""
        metadata = server["metadata"]
        if FINALIZER not in (metadata.get("finalizers") or ()):
            return
        if wait := await self._final_backup(server):
            self._notices.tell(server, "FinalBackup", wait)
            raise Outcome(wait, longest=5)
        for place, child in self._store.children(metadata["namespace"]).items():
            if not KINDS[place.kind].namespaced:
                await self._client.delete(KINDS[place.kind], "", place.name, uid=child.uid)
        await self._finalizers(server, [each for each in metadata["finalizers"] if each != FINALIZER])

    def _memory(self, server: Mapping[str, Any]) -> Memory:
        metadata = server["metadata"]
        memory = self._memories.get(metadata["namespace"])
        if memory is None or memory.uid != metadata["uid"]:
            memory = self._memories[metadata["namespace"]] = Memory(metadata["uid"])
        if memory.generation != metadata.get("generation"):
            memory.generation, memory.changed_at = metadata.get("generation"), time.monotonic()
        return memory

    def _forget(self, namespace: str) -> None:
        self._memories.pop(namespace, None)
        self._rendering.forget(namespace)
        self._backups.forget(namespace)
        self._recoveries.forget(namespace)


def _asked(server: Mapping[str, Any], plan: planning.Plan) -> Asked:
    """Return what is to be rendered for a plan."""
    whose = str((server["metadata"].get("labels") or {}).get(SERVER_LABEL) or "")
    recovery = {"copies": plan.copies, "rests": plan.rests} if "recovery" in plan.spec else None
    return Asked(plan.spec, plan.stops, whose, plan.copied, recovery)


def same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Say whether two statuses say the same, whatever the order of their lists."""
    return _ordered(one) == _ordered(other)


def _ordered(status: Mapping[str, Any]) -> dict[str, Any]:
    lists = {"conditions": "type", "components": "name"}
    ordered = {key: sorted(status.get(key) or (), key=lambda each: str(each[by])) for key, by in lists.items()}
    return {**status, **ordered}


def outline(status: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of a status somebody may wait for."""
    conditions = {kind: condition(status, kind) for kind in ("Ready", "Progressing", "Degraded")}
    shown = {kind: (each.get("status"), each.get("reason")) for kind, each in conditions.items()}
    recovery = {key: (status.get("recovery") or {}).get(key) for key in ("revision", "mode", "state", "step")}
    observed = {"observed": status.get("observedGeneration"), "release": status.get("release")}
    return {"conditions": shown, "recovery": recovery, **observed}
