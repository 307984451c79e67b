"""One moment of one server, as its plan and its status are made from it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from provisioning.operator.children import Certified, Database, Place, Volume, Workload
from provisioning.operator.store import Child

MAIN = "synapse-main"
GENERIC = "synapse-generic"
FRONT = "synapse-front"
"""Routes, and tells people that a server is suspended: it needs no database and goes on while all others stop."""
WORKLOADS = {"Deployment", "StatefulSet"}
AGENT = Place("Deployment", "backup-agent")
IDENTITY = Place("Certificate", "backup-agent")
RECOVERY = frozenset({Place("StatefulSet", "recovery"), Place("Deployment", "recovery-settle")})
"""What brings a server back: nobody is served by it."""
APART = frozenset({AGENT, *RECOVERY})
"""Groups of processes that serve nobody."""
IDENTITIES = frozenset({IDENTITY, Place("Certificate", "recovery-identity"), Place("Certificate", "recovery")})
"""Certificates by which a server's own pods are known, not its hosts."""
VOLUME_ELSEWHERE = "VolumeElsewhere"
"""The reason why a process waits for a volume that somebody has mounted on another node."""


@dataclass(frozen=True)
class Fault:
    """Something that is wrong: a reason with a name, and a sentence for a person."""

    reason: str
    message: str


@dataclass(frozen=True)
class Probe:
    """What the server answered to the protocol checks."""

    ok: bool
    version: str = ""
    signing_key_id: str = ""
    message: str = ""
    since: float = 0.0
    """Of one that failed: for how many seconds all have."""


class Final(NamedTuple):
    """How far a final backup is. `order`: which one."""

    order: str = ""
    state: str = ""
    point: str = ""
    done_bytes: int = 0


NO_FINAL = Final()


@dataclass(frozen=True)
class Told:
    """What a server's backup agent says. `answered`: whether it said anything."""

    answered: bool
    ready: bool = False
    reason: str = ""
    message: str = ""
    stored: str = ""
    """The last wish to store everything that is fulfilled."""
    final: Final = NO_FINAL
    recovery: Mapping[str, Any] = field(default_factory=dict)
    """Of a pod that brings a server back: its status."""


@dataclass(frozen=True)
class Observed:
    """What was seen. `now`: Unix seconds."""

    children: Mapping[Place, Child]
    now: float
    probe: Probe | None = None
    """None when the server has not been asked in its present state."""
    diagnosis: Fault | None = None
    """Why processes do not run, as their pods and volumes tell; `crashes` says how often the main one ended."""
    crashes: int = 0
    starting: bool = False
    """Whether the main process runs and has not answered since its start."""
    faults: Mapping[Place, Fault] = field(default_factory=dict)
    """Children that the API server refused."""
    fault: Fault | None = None
    """What kept the whole turn from being done."""
    kept: tuple[Place, ...] = ()
    pending: int = 0
    """Children that still must be written."""
    pods: int | None = None
    """How many of Synapse's pods there are, where that was asked."""
    backup: Told | None = None
    """What the backup agent told last; None where it was not asked."""
    recovery: Told | None = None
    """What the pod says that brings the server back; None where it was not asked."""
    stored: bool = True
    """Whether all that there is now is backed up, where that was asked."""

    @property
    def troubled(self) -> bool:
        """Whether something is wrong already."""
        return bool(self.fault or self.faults or self.diagnosis)

    def workloads(self) -> Iterator[tuple[str, Workload]]:
        """Yield each group of processes that serve, with its name."""
        for place, child in sorted(self.children.items()):
            if place.kind in WORKLOADS and place not in APART and isinstance(child.seen, Workload):
                yield place.name, child.seen

    def agent(self) -> Workload | None:
        """Return what backs the server up. Whether people are served never depends on it."""
        child = self.children.get(AGENT)
        return child.seen if child is not None and isinstance(child.seen, Workload) else None

    def synapses(self) -> Iterator[tuple[str, Workload]]:
        """Yield Synapse's groups of processes."""
        return ((name, each) for name, each in self.workloads() if is_synapse(name))

    def workload(self, name: str) -> Workload | None:
        """Return one group of processes."""
        return next((each for found, each in self.workloads() if found == name), None)

    def arrangements(self) -> set[str]:
        """Return for which arrangements Synapse's groups of processes were made."""
        found = ((place, child) for place, child in self.children.items() if place.kind in WORKLOADS)
        return {child.arrangement for place, child in found if is_synapse(place.name)}

    def stopped(self) -> bool:
        """Say whether the cluster knows that no process of Synapse is wanted, and none is left as far as it tells."""
        found = [each for place, each in self.children.items() if place.kind in WORKLOADS and is_synapse(place.name)]
        none = all(isinstance(each.seen, Workload) and each.seen.settled and not each.seen.desired for each in found)
        return none and not any(each.stale or each.deleting for each in found)

    def untold(self, kinds: Set[str]) -> list[str]:
        """Return the names of what we have written and of these kinds, and whose controller has said nothing since."""
        found = ((place, child) for place, child in self.children.items() if place.kind in kinds and place not in APART)
        return sorted(place.name for place, child in found if child.stale or child.seen is None)

    def database(self) -> Database | None:
        """Return the database cluster, where there is one."""
        return next((each.seen for each in self.children.values() if isinstance(each.seen, Database)), None)

    def certificates(self) -> list[Certified]:
        """Return the certificates that cert-manager makes for the server's hosts."""
        found = ((place, child.seen) for place, child in self.children.items())
        return [seen for place, seen in found if isinstance(seen, Certified) and place not in IDENTITIES]

    def identity(self) -> Certified | None:
        """Return the certificate of the backup agent."""
        child = self.children.get(IDENTITY)
        return child.seen if child is not None and isinstance(child.seen, Certified) else None

    def volumes(self) -> Iterator[tuple[str, Volume]]:
        """Yield each volume with its name."""
        for place, child in sorted(self.children.items()):
            if isinstance(child.seen, Volume):
                yield place.name, child.seen


def is_synapse(name: str) -> bool:
    """Say whether a group of processes is one of Synapse's own."""
    return name.startswith("synapse-") and name != FRONT


def condition(status: Mapping[str, Any], kind: str) -> Mapping[str, Any]:
    """Return one condition of a status, empty when it is not there."""
    return next((each for each in status.get("conditions") or () if each["type"] == kind), {})
