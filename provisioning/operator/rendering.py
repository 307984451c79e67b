"""A server's documents for one turn, rendered only when its plan has changed or something must be written.

The bodies of many servers at once would need far more memory than anything else here, so turns that render wait for a
share of a common budget.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import orjson

from provisioning.operator import arrangement
from provisioning.operator.children import ALWAYS, KINDS, Place
from provisioning.operator.differences import Wanted, Write
from provisioning.operator.kube.fingerprint import Shapes
from provisioning.operator.ownership import Owner, body, own, stamp
from provisioning.operator.render import Renderer, RenderError
from provisioning.operator.store import Child, Store

FIRST = 160_000  # bytes a server's bodies take while it is being made, or looked at for the first time
CHANGE = 25_000  # and when some of them have changed


class Budget:
    """Memory that turns share, first come first served."""

    def __init__(self, total: int) -> None:
        self._left = total
        self._line: deque[tuple[int, asyncio.Future[None]]] = deque()

    @contextlib.asynccontextmanager
    async def take(self, share: int) -> AsyncIterator[None]:
        """Wait for a share and hold it."""
        if self._line or self._left < share:
            place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._line.append((share, place))
            try:
                await place
            except asyncio.CancelledError:
                if place.done() and not place.cancelled():
                    self._give(share)
                raise
        else:
            self._left -= share
        try:
            yield
        finally:
            self._give(share)

    def _give(self, share: int) -> None:
        self._left += share
        while self._line and (self._line[0][0] <= self._left or self._line[0][1].done()):
            wanted, place = self._line.popleft()
            if not place.done():
                self._left -= wanted
                place.set_result(None)


@dataclass(slots=True)
class Known:
    """What was rendered for a plan, and which children were there once it was carried out."""

    plan: bytes
    wanted: tuple[Wanted, ...]
    before: frozenset[Place] = frozenset()


@dataclass(frozen=True, slots=True)
class Asked:
    """What is to be rendered: a spec, or with `stops` the same without a process of Synapse."""

    spec: Mapping[str, Any]
    stops: bool = False
    whose: str = ""
    """The id of the server whose data these are, where that is known."""
    copied: bool = False
    """Whether the database was made as a copy of another one."""
    recovery: Mapping[str, bool] | None = None
    """How far the operator is with `spec.recovery`."""


class Rendered:
    """One turn's documents."""

    def __init__(self, rendering: Rendering, owner: Owner, asked: Asked, known: Known) -> None:
        self._rendering = rendering
        self._owner = owner
        self._asked = asked
        self._known = known
        self.bodies: dict[Place, dict[str, Any]] = {}

    @property
    def wanted(self) -> tuple[Wanted, ...]:
        """Every child as it should be."""
        return self._known.wanted

    @property
    def before(self) -> frozenset[Place]:
        """The children that were there after the last turn that was carried out."""
        return self._known.before

    def settle(self) -> None:
        """Take note that all is carried out."""
        self._known.before = frozenset(each.place for each in self._known.wanted)

    def untouched(self, place: Place, child: Child) -> bool:
        """Say whether a live child still has every field that was applied; true also where that can't be told yet."""
        if child.accepted == child.fingerprint:
            return bool(child.fingerprint)
        # Not seen since this process began: compare its fields with the document's, once.
        found = self.bodies.get(place)
        if child.accepted or found is None or not self._rendering.shapes.cover(child.fingerprint, found):
            return False
        child.accepted = child.fingerprint
        return True

    def forget(self, place: Place) -> None:
        """Take note that we ourselves delete a child."""
        self._known.before -= {place}

    async def prepare(self, writes: Iterable[Write]) -> None:
        """Get the bodies of what is to be written."""
        missing = {each.place for each in writes} - self.bodies.keys()
        if missing:
            have = [each.digest for each in self.wanted if each.place not in missing]
            await self._rendering.fetch(self._owner, self._asked, have, self.bodies)

    def body(self, write: Write) -> bytes:
        """Return what to send."""
        return body(own(self.bodies[write.place], write.digest, self._owner, KINDS[write.place.kind]))


class Rendering:
    """Renders, and remembers of each server what its documents' digests were."""

    def __init__(self, renderer: Renderer, store: Store, *, budget: int = 12 << 20) -> None:
        self.shapes: Shapes = store.shapes
        self._renderer = renderer
        self._store = store
        self._budget = Budget(budget)
        self._known: dict[str, Known] = {}

    def forget(self, namespace: str) -> None:
        """Forget a server."""
        self._known.pop(namespace, None)

    @contextlib.asynccontextmanager
    async def of(self, owner: Owner, asked: Asked) -> AsyncIterator[Rendered]:
        """Give a server's documents for one turn."""
        whole = [owner.uid, asked.spec, asked.stops, asked.whose, asked.copied, asked.recovery]
        plan = blake2b(orjson.dumps(whole, option=orjson.OPT_SORT_KEYS), digest_size=12).digest()
        known = self._known.get(owner.namespace)
        live = self._store.children(owner.namespace)
        share = 0
        if known is None:
            share = FIRST
        elif known.plan != plan or any(child.accepted != child.fingerprint for child in live.values()):
            share = CHANGE if live else FIRST
        async with self._budget.take(share) if share else contextlib.nullcontext():
            if known is None or known.plan != plan:
                rendered = await self._render(owner, asked, plan, known)
            else:
                rendered = Rendered(self, owner, asked, known)
            yield rendered

    async def _render(self, owner: Owner, asked: Asked, plan: bytes, known: Known | None) -> Rendered:
        live = self._store.children(owner.namespace)
        places = {
            each.digest: each.place
            for each in (known.wanted if known else ())
            if (child := live.get(each.place)) is not None
            and child.digest == stamp(each.digest)
            and child.accepted == child.fingerprint
        }
        bodies: dict[Place, dict[str, Any]] = {}
        wanted = await self.fetch(owner, asked, places, bodies)
        before = known.before if known else frozenset()
        fresh = Known(plan, tuple(Wanted(places.get(digest) or place, digest) for digest, place in wanted), before)
        if missing := ALWAYS - {each.place for each in fresh.wanted}:
            raise RenderError(
                f"the chart makes no {' and no '.join(map(str, sorted(missing)))}, which every server has"
            )
        self._known[owner.namespace] = fresh
        rendered = Rendered(self, owner, asked, fresh)
        rendered.bodies = bodies
        return rendered

    async def fetch(
        self, owner: Owner, asked: Asked, have: Iterable[str], bodies: dict[Place, dict[str, Any]]
    ) -> list[tuple[str, Place]]:
        """Render; put the bodies of documents not in `have` into `bodies`, and return digest and place of all."""
        spec = asked.spec
        server = {"name": owner.name, "namespace": owner.namespace, "uid": owner.uid, "stopped": asked.stops}
        server |= {"arrangement": arrangement.STOPPED if asked.stops else arrangement.of(spec)}
        server |= {"id": asked.whose} if asked.whose else {}
        server |= {"copied": True} if asked.copied else {}
        server |= {"recovery": dict(asked.recovery)} if asked.recovery is not None else {}
        values = {"server": server | {"organisation": spec["organisation"]}, "spec": spec}
        found: list[tuple[str, Place]] = []
        for document in await self._renderer.render(owner.namespace, values, have):
            place = Place("", "")
            if document.found is not None:
                place = place_of(document.found, owner.namespace)
                bodies[place] = document.found
            found.append((document.digest, place))
        return found


def place_of(found: Mapping[str, Any], namespace: str) -> Place:
    """Return which child a document is. The chart makes only kinds that the operator knows, in the server's place."""
    kind, name = str(found.get("kind")), str((found.get("metadata") or {}).get("name"))
    known = KINDS.get(kind)
    if known is None or found.get("apiVersion") != known.api_version:
        raise RenderError(f"the chart makes a {kind} of {found.get('apiVersion')}, which the operator does not manage")
    if found["metadata"].get("namespace", namespace) != namespace:
        raise RenderError(f"the chart puts {kind} {name} into another namespace than the server's own")
    return Place(kind, name)
