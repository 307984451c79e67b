"""Carries differences out: applies, deletes, makes anew what can't be changed, and says what was undone."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from provisioning.operator.children import KINDS, ORDER, Place
from provisioning.operator.differences import Cause, Differences, Write
from provisioning.operator.kube.client import Client
from provisioning.operator.kube.errors import ApiError, NotLeaderError
from provisioning.operator.kube.fingerprint import additions, claimed
from provisioning.operator.metrics import Metrics
from provisioning.operator.notices import Notices
from provisioning.operator.observed import WORKLOADS, Fault, is_synapse
from provisioning.operator.ownership import Owner
from provisioning.operator.reasons import of_api_error
from provisioning.operator.rendering import Rendered
from provisioning.operator.store import Store

log = logging.getLogger(__name__)

WIDTH = 8  # writes of one server at once when no other server waits
CALM = 600.0  # seconds without an edit after which a child's edits are forgotten
TOLERATED = 3  # edits that are corrected at once
LONGEST_TRUCE = 300.0  # seconds between two corrections of a child that somebody edits again and again


@dataclass(slots=True)
class Quarrel:
    """A child that somebody else keeps editing."""

    edits: int
    last: float


class Writer:
    """Writes children. `width` says how many writes one server may have under way; `leads` whether we may write."""

    def __init__(
        self,
        client: Client,
        store: Store,
        notices: Notices,
        metrics: Metrics,
        *,
        leads: Callable[[], bool],
        width: Callable[[], int] = lambda: WIDTH,
    ) -> None:
        self._client, self._store, self._notices, self._metrics = client, store, notices, metrics
        self._leads, self._width = leads, width
        self._quarrels: dict[tuple[str, Place], Quarrel] = {}

    async def carry_out(
        self, server: Mapping[str, Any], owner: Owner, found: Differences, rendered: Rendered, *, urgent: bool = False
    ) -> dict[Place, Fault]:
        """Write; return what the API server refused. Raise `ApiError` when it does not answer or lets nobody write.

        With `urgent` the first write goes before those of others: what somebody waits for begins, whoever else waits.
        """
        faults: dict[Place, Fault] = {}
        writes = [each for each in found.writes if not self._truce(owner.namespace, each, faults)]
        await rendered.prepare(writes)
        for number, wave in enumerate(_waves(writes)):
            await self._wave(server, owner, wave, rendered, faults, urgent=urgent and not number)
        for place in found.surplus:
            await self._prune(owner, place)
        return faults

    async def _wave(
        self,
        server: Mapping[str, Any],
        owner: Owner,
        wave: list[Write],
        rendered: Rendered,
        faults: dict[Place, Fault],
        *,
        urgent: bool,
    ) -> None:
        queue = iter(enumerate(wave))
        stop: list[ApiError] = []

        async def one_after_the_other() -> None:
            for number, write in queue:
                if stop:
                    return
                try:
                    if fault := await self._apply(server, owner, write, rendered, urgent=urgent and not number):
                        faults[write.place] = fault
                except ApiError as error:
                    stop.append(error)

        # As wide as nobody else is waiting: with many servers, each gets its first write soon.
        width = max(1, min(self._width(), len(wave)))
        await asyncio.gather(*(one_after_the_other() for _each in range(width)))
        if stop:
            raise stop[0]

    async def _apply(
        self, server: Mapping[str, Any], owner: Owner, write: Write, rendered: Rendered, *, urgent: bool
    ) -> Fault | None:
        kind = KINDS[write.place.kind]
        self._check()
        try:
            found = rendered.body(write)
            answer = await self._client.apply(kind, owner.namespace, write.place.name, found, urgent=urgent)
            if not kind.shared and additions(answer["metadata"]):
                await self._claim(owner, write.place, answer["metadata"])
                answer = await self._client.apply(kind, owner.namespace, write.place.name, found)
        except ApiError as error:
            if error.passing or error.status == 409:
                raise
            if write.place.kind == "StatefulSet" and error.status == 422 and "updates to statefulset" in error.message:
                rendered.forget(write.place)
                await self._again(owner, write.place)
                return None
            fault = of_api_error(error)
            if fault.reason == "NamespaceTerminating":  # nothing else can be made there either
                raise
            return fault
        self._store.take(kind, answer, written=True)
        self._metrics.applied.labels(write.cause.value).inc()
        self._metrics.applied_at.set_to_current_time()
        self._say(server, write)
        return None

    async def _claim(self, owner: Owner, place: Place, metadata: Mapping[str, Any]) -> None:
        """Make what somebody else has added ours, so that the next apply takes it away."""
        fields, version = claimed(metadata), metadata["resourceVersion"]
        await self._client.own(KINDS[place.kind], owner.namespace, place.name, fields, version)

    async def _again(self, owner: Owner, place: Place) -> None:
        """Delete a StatefulSet but not its pods, so that one with other volumes can take them over."""
        child = self._store.children(owner.namespace).get(place)
        log.info("%s: %s is made anew, its pods go on running", owner.namespace, place)
        if child is not None:
            await self._client.delete(
                KINDS[place.kind], owner.namespace, place.name, uid=child.uid, propagation="Orphan"
            )

    async def _prune(self, owner: Owner, place: Place) -> None:
        child = self._store.children(owner.namespace).get(place)
        if child is None:
            return
        self._check()
        kind = KINDS[place.kind]
        # A group of Synapse's processes stays to be seen until the last of them has ended.
        propagation = "Foreground" if place.kind in WORKLOADS and is_synapse(place.name) else "Background"
        try:
            await self._client.delete(kind, owner.namespace, place.name, uid=child.uid, propagation=propagation)
        except ApiError as error:
            if error.passing:
                raise
            log.warning("%s: %s is not needed any more and could not be deleted: %s", owner.namespace, place, error)
            return
        self._metrics.pruned.inc()

    def _check(self) -> None:
        if not self._leads():
            raise NotLeaderError

    def _say(self, server: Mapping[str, Any], write: Write) -> None:
        if write.cause is Cause.EDITED:
            by = f" by {write.editor}" if write.editor else ""
            note = f"{write.place} had been changed{by}; it is as Hearth wants it again. Change the server in Hearth."
            self._notices.tell(server, "EditUndone", note, warn=True)
        elif write.cause is Cause.DELETED:
            note = f"{write.place} had been deleted by somebody; it was made again."
            self._notices.tell(server, "Restored", note, warn=True)

    def _truce(self, namespace: str, write: Write, faults: dict[Place, Fault]) -> bool:
        """Say whether a child that is edited over and over is left alone for a while."""
        if write.cause is not Cause.EDITED:
            return False
        key, now = (namespace, write.place), time.monotonic()
        held = self._quarrels.get(key)
        if held is None or now - held.last > CALM:
            held = self._quarrels[key] = Quarrel(0, now)
        wait = min(LONGEST_TRUCE, 2.0 ** (held.edits - TOLERATED)) if held.edits >= TOLERATED else 0.0
        if now - held.last < wait:
            who = write.editor or "somebody"
            faults[write.place] = Fault("EditedAgain", f"{who} keeps changing it; it is corrected every {wait:.0f} s.")
            return True
        held.edits, held.last = held.edits + 1, now
        if len(self._quarrels) > 1000:
            self._quarrels.pop(next(iter(self._quarrels)))
        return False


def _waves(writes: list[Write]) -> list[list[Write]]:
    """Return the writes in two groups: what processes need before them, and the rest."""
    first = ORDER["Deployment"]
    early = [each for each in writes if ORDER[each.place.kind] < first]
    return [wave for wave in (early, writes[len(early) :]) if wave]
