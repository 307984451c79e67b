"""What the operator knows of the cluster: every MatrixServer whole, of their children only what decides something."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import orjson

from provisioning.operator.arrangement import ANNOTATION as ARRANGEMENT
from provisioning.operator.children import SERVERS, Place, outdated
from provisioning.operator.kube.client import MANAGER
from provisioning.operator.kube.fingerprint import Shapes
from provisioning.operator.kube.kinds import DEFINITIONS, Kind
from provisioning.operator.ownership import DIGEST, HOME, owner_of


@dataclass(slots=True)
class Child:
    """One live child."""

    uid: str
    version: int
    """Its resource version: an older one never replaces a newer one."""
    digest: str
    fingerprint: int
    deleting: bool
    owner: str
    seen: Any = None
    """What its kind's `look` made of it."""
    editor: str = ""
    """Who else wrote it last, other than its status."""
    stale: bool = False
    """Whether we have written it since `seen` was made: the watch has yet to tell what came of it."""
    accepted: int = 0
    """The fingerprint that was found to be as applied."""
    arrangement: str = ""
    """Of a group of Synapse's processes: who does what among those that it was made for."""

    def same(self, other: Child) -> bool:
        """Say whether nothing has changed that decides anything."""
        return (
            self.uid,
            self.digest,
            self.fingerprint,
            self.deleting,
            self.owner,
            self.stale,
            self.seen,
            self.arrangement,
        ) == (
            other.uid,
            other.digest,
            other.fingerprint,
            other.deleting,
            other.owner,
            other.stale,
            other.seen,
            other.arrangement,
        )


class Mark(NamedTuple):
    """What of a MatrixServer a person waits for when it changes."""

    uid: str
    generation: int
    deleting: bool


class Store:
    """The cache that the watches fill. `wake` is told which namespace has changed, and whether somebody waits."""

    def __init__(self, wake: Callable[[str, bool], None]) -> None:
        self.shapes = Shapes()
        self.definitions: set[str] = set()
        """Names of the CustomResourceDefinitions that are there."""
        self.defined: Callable[[], None] = lambda: None
        """Called when that set has changed."""
        self.redefined: Callable[[str], None] = lambda _name: None
        """Called with the name of a definition whose spec has changed."""
        self.told: Callable[[str], bool] = lambda _kind: True
        """Says whether every object of a kind that is there has been seen."""
        self._forms: dict[str, int] = {}
        self._wake = wake
        self._servers: dict[str, bytes] = {}
        self._marks: dict[str, tuple[Mark, int]] = {}
        self._children: dict[str, dict[Place, Child]] = {}
        self._homes: dict[Place, str] = {}

    def server(self, namespace: str) -> dict[str, Any] | None:
        """Return the MatrixServer of a namespace as it was seen last."""
        raw = self._servers.get(namespace)
        return None if raw is None else orjson.loads(raw)

    def namespaces(self) -> list[str]:
        """Return every namespace that has a MatrixServer."""
        return list(self._servers)

    def children(self, namespace: str) -> Mapping[Place, Child]:
        """Return the live children of a namespace's server."""
        return self._children.get(namespace, {})

    def count(self) -> int:
        """Return how many children there are in all."""
        return sum(map(len, self._children.values()))

    # What the reflectors call.

    def seen(self, kind: Kind, found: Mapping[str, Any]) -> None:
        """Take an object as it is now."""
        if kind is DEFINITIONS:
            self._define(found["metadata"]["name"], there=True)
            self._compare(found["metadata"])
        elif kind is SERVERS:
            self.take_server(found)
        else:
            self.take(kind, found)

    def gone(self, kind: Kind, namespace: str, name: str, version: int) -> None:
        """Take note that an object is deleted."""
        if kind is DEFINITIONS:
            self._define(name, there=False)
            return
        if kind is SERVERS:
            if name == SERVER_NAME and self._marks.get(namespace, (None, 0))[1] <= version:
                self._servers.pop(namespace, None)
                self._marks.pop(namespace, None)
                self._wake(namespace, True)
            return
        place = Place(kind.name, name)
        home = namespace if kind.namespaced else self._homes.pop(place, "")
        held = self._children.get(home, {})
        # A child that we have made again since is not the one whose end is told here.
        if place in held and held[place].version <= version:
            self._drop(home, place)
            self._wake(home, False)

    def known(self, kind: Kind) -> set[tuple[str, str]]:
        """Return (namespace, name) of every object of a kind that is held."""
        if kind is DEFINITIONS:
            return {("", name) for name in self.definitions}
        if kind is SERVERS:
            return {(namespace, SERVER_NAME) for namespace in self._servers}
        return {
            (home if kind.namespaced else "", place.name)
            for home, held in self._children.items()
            for place in held
            if place.kind == kind.name
        }

    # What the operator's own writes tell.

    def take(self, kind: Kind, found: Mapping[str, Any], *, written: bool = False) -> Child | None:
        """Take a child as it is now; from our own write's answer no wish for another turn comes."""
        metadata = found["metadata"]
        labels, annotations = metadata.get("labels") or {}, metadata.get("annotations") or {}
        home = metadata["namespace"] if kind.namespaced else labels.get(HOME, "")
        place = Place(kind.name, sys.intern(metadata["name"]))
        version = int(metadata["resourceVersion"])
        held = self._children.get(home, {}).get(place)
        told = held is not None and held.version == version and held.stale and not written
        if held is not None and held.version >= version and not told:
            if written:  # the watch was quicker than the answer
                held.accepted = self.shapes.of(metadata, shared=kind.shared)
            return held
        now = Child(
            uid=metadata["uid"],
            version=version,
            digest=annotations.get(DIGEST, ""),
            fingerprint=self.shapes.of(metadata, shared=kind.shared),
            deleting="deletionTimestamp" in metadata,
            owner=sys.intern(owner_of(metadata)),
            seen=kind.look(found) if kind.look and not written else held and outdated(held.seen),
            editor=_editor(metadata),
            arrangement=sys.intern(annotations.get(ARRANGEMENT, "")),
        )
        if written:
            # Whatever the server made of our own write is what we applied.
            now.accepted, now.stale = now.fingerprint, kind.look is not None
        elif held is not None and held.uid == now.uid:
            now.accepted = held.accepted
        self._children.setdefault(sys.intern(home), {})[place] = now
        if not kind.namespaced:
            self._homes[place] = home
        if not written and (held is None or not held.same(now)):
            self._wake(home, False)
        return now

    def take_server(self, found: Mapping[str, Any], *, written: bool = False) -> None:
        """Take a MatrixServer as it is now."""
        metadata = found["metadata"]
        namespace = metadata["namespace"]
        mark = Mark(metadata["uid"], metadata.get("generation", 0), "deletionTimestamp" in metadata)
        version = int(metadata["resourceVersion"])
        held, before = self._marks.get(namespace, (None, 0))
        if metadata["name"] != SERVER_NAME or version < before:
            return
        kept = {key: value for key, value in metadata.items() if key != "managedFields"}
        raw = orjson.dumps({**found, "metadata": kept})
        # The same version says something else when the definition has changed, and with it what is left out.
        if version == before and raw == self._servers.get(namespace):
            return
        self._servers[namespace] = raw
        self._marks[namespace] = (mark, version)
        if not written:
            self._wake(namespace, held != mark)

    def _define(self, name: str, *, there: bool) -> None:
        if there is not (name in self.definitions):
            (self.definitions.add if there else self.definitions.discard)(name)
            self.defined()

    def _compare(self, metadata: Mapping[str, Any]) -> None:
        name, form = metadata["name"], int(metadata.get("generation") or 0)
        if self._forms.setdefault(name, form) != form:
            self._forms[name] = form
            self.redefined(name)

    def _drop(self, home: str, place: Place) -> None:
        held = self._children[home]
        del held[place]
        if not held:
            del self._children[home]


SERVER_NAME = "synapse"


def _editor(metadata: Mapping[str, Any]) -> str:
    last = ("", "")
    for entry in metadata.get("managedFields") or ():
        if not entry.get("subresource") and not (entry["manager"] == MANAGER and entry["operation"] == "Apply"):
            last = max(last, (str(entry.get("time") or ""), str(entry["manager"])))
    return sys.intern(last[1])
