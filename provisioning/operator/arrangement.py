"""Who does what among a server's processes, and when all must stop before that changes. Pure functions.

Synapse's processes must agree on who writes a stream, who sends to other servers and who keeps media. While old and new
ones disagree, a stream has two writers. So each group of processes carries, as an annotation, the arrangement that it
was made for, and processes of two arrangements never live together.
https://element-hq.github.io/synapse/latest/workers.html
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

ANNOTATION = "hearth.host/arrangement"
STOPPED = "stopped"
"""What a group carries that was told to have no process."""
ALONE = "main"
SYNAPSE = "hearth.host/synapse=true"
"""The label of every pod of Synapse."""


def of(spec: Mapping[str, Any]) -> str:
    """Return a spec's arrangement: who has which duty, and with workers the CPU and the Mi of memory they share."""
    workers = spec.get("workers") or {}
    counts = {key: int(workers.get(key) or 0) for key in ("eventPersisters", "federationSenders")}
    duties = [f"{key}={count}" for key, count in counts.items() if count]
    duties += ["media"] if workers.get("mediaRepositories") else []
    duties += sorted(stream for stream, own in (workers.get("streamWriters") or {}).items() if own)
    if not duties and not workers.get("generic"):
        return ALONE
    return f"{','.join(['workers', *duties])} {int(spec['size']['cpu'])} {_mebibytes(spec['size']['memory'])}"


def conflicts(there: str, wanted: str) -> bool:
    """Say whether processes of the one arrangement must have ended before there are any of the other.

    A smaller size too: the quota shrinks with it, and what still has the old size would leave no room for the new.
    """
    if there in {"", STOPPED, wanted}:
        return False
    (duties, *had), (others, *has) = there.split(), wanted.split()
    return duties != others or any(int(now) < int(before) for before, now in zip(had, has, strict=True))


def _mebibytes(memory: str) -> int:
    return int(memory[:-2]) * (1024 if memory.endswith("Gi") else 1)
