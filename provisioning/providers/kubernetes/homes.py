"""Who lives in which namespace. A server's data never move: a restore that is switched to changes who lives with them.

A namespace is born as `hearth-<id>` of whom it was made for, and says in its label `hearth.host/server` who lives there
now. Two labels can't change in one write, so both also say in `hearth.host/coming` who comes, and in an annotation by
which exchange. First the instance's namespace says so, which changes nothing yet; with the same in the server's it is
made, and whoever comes next carries it to its end. At any point one rule tells where somebody lives (`_choose`):

1. where the label `server` names them and nobody is coming
2. else where they are coming, once both namespaces say so
3. else where the label `server` names them
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from provisioning.providers.base import ProviderError
from provisioning.providers.kubernetes.client import Client, Refused
from provisioning.providers.kubernetes.objects import INSTANCE_OF, SERVER, namespace_of
from provisioning.providers.kubernetes.writing import COLLECTIONS, Writer, paths

Object = dict[str, Any]
COMING = "hearth.host/coming"
EXCHANGING = "hearth.host/exchanging"
EXCHANGED = "hearth.host/exchanged"
"""On the namespace in which an instance lives: whether its server has what was restored in it."""
NAMESPACES = COLLECTIONS["Namespace"]
FRESH_S = 10.0


@dataclass(frozen=True)
class Exchange:
    """A server goes from one namespace to another, and its instance the other way."""

    server: str
    instance: str
    here: str
    """Where the server lived."""
    there: str
    """Where it is going to live."""
    restored: bool


class Homes:
    """Where servers and instances of one cluster live. May be used from many threads."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._lock = threading.Lock()
        self._known: dict[str, tuple[float, str]] = {}

    def find(self, server_id: str, *, patience: float | None = None) -> Object | None:
        """Return the namespace in which somebody lives, or is bound to; None if they have none."""
        if (found := self._where_seen(server_id, patience)) is not None:
            return found
        try:
            named = self._listed(SERVER, server_id, patience)
            settled = [each for each in named if not _coming(each)]
            coming = [] if settled else self._listed(COMING, server_id, patience)
        except Refused as error:
            if error.status != 403:
                raise
            # Of an account from before there were exchanges. It could make none either.
            return self._client.get(f"{NAMESPACES}/{namespace_of(server_id)}")
        found = _choose(settled, [each for each in coming if self._is_made(each)], named)
        self.learn(server_id, _name(found) if found else namespace_of(server_id))
        return found

    def of(self, server_id: str) -> str:
        """Return the name of the namespace in which somebody lives, or would."""
        found = self.find(server_id)
        return _name(found) if found else namespace_of(server_id)

    def soon(self, server_id: str) -> str:
        """Return the same as it was seconds ago at most, or as it was known last while the cluster doesn't answer."""
        with self._lock:
            seen, name = self._known.get(server_id, (0.0, namespace_of(server_id)))
        if seen and time.monotonic() - seen < FRESH_S:
            return name
        try:
            found = self.find(server_id, patience=0.0)
        except ProviderError:
            return name
        return _name(found) if found else namespace_of(server_id)

    def learn(self, server_id: str, namespace: str) -> None:
        """Keep where somebody was just seen."""
        with self._lock:
            self._known[server_id] = time.monotonic(), namespace

    def pending(self, found: Object | None) -> Exchange | None:
        """Return the exchange that a namespace takes part in, and that is bound to be made."""
        journal = journal_of(found)
        if journal is None:
            return None
        here = self._client.get(f"{NAMESPACES}/{journal.here}")
        return journal if here is not None and journal_of(here) == journal else None

    def _where_seen(self, server_id: str, patience: float | None) -> Object | None:
        """Return where somebody was seen last, or was born, if the first rule still says so.

        An API server reads all namespaces to list some by a label, and a restore asks each second.
        """
        born = namespace_of(server_id)
        with self._lock:
            seen = self._known.get(server_id, (0.0, born))[1]
        for name in dict.fromkeys((seen, born)):
            found = self._client.get(f"{NAMESPACES}/{name}", patience=patience)
            if found is not None and _label(found, SERVER) == server_id and not _coming(found):
                self.learn(server_id, name)
                return found
        return None

    def _is_made(self, found: Object) -> bool:
        """Tell whether the exchange by which somebody comes here is bound to be made, or over but for the label."""
        return _label(found, SERVER) == _label(found, COMING) or self.pending(found) is not None

    def _listed(self, label: str, server_id: str, patience: float | None) -> list[Object]:
        selector = f"{label}={server_id}"
        return [*self._client.listed(NAMESPACES, patience=patience, labelSelector=selector)]


def begin(writer: Writer, exchange: Exchange, fence: int) -> None:
    """Write down that it will be made: with the second of the two writes it is."""
    for name, coming in ((exchange.there, exchange.server), (exchange.here, exchange.instance)):
        marks: dict[str, str] = {EXCHANGING: json.dumps(asdict(exchange), sort_keys=True)}
        if name == exchange.here:
            marks[EXCHANGED] = json.dumps(exchange.restored)
        change = {"metadata": {"labels": {COMING: coming}, "annotations": marks}}
        _write(writer, name, fence, change)


def move(writer: Writer, exchange: Exchange, fence: int) -> None:
    """Let both namespaces and their MatrixServers say who lives there now. What nobody may do any more is taken away:

    the instance neither answers anybody outside nor is backed up.
    """
    lives: tuple[tuple[str, str, str | None], ...] = (
        (exchange.there, exchange.server, None),
        (exchange.here, exchange.instance, exchange.server),
    )
    for name, server_id, instance_of in lives:
        _write(writer, name, fence, _of(server_id, instance_of))
    for name, server_id, instance_of in lives:
        alone: Object = {"closed": True, "recovery": None}
        if instance_of:
            alone |= {
                "backup": None,
                "suspended": None,
                "federation": {"enabled": False},
                "routing": {"unrouted": True},
            }
        change = {**_of(server_id, instance_of), "spec": alone}
        writer.change(paths(name).server, fence, lambda _, change=change: change)  # type: ignore[misc]


def end(writer: Writer, exchange: Exchange, fence: int) -> None:
    """Take the marks away, the deciding one first: without it the other's say nothing, so nobody carries it on again.

    Were the other's gone first, a verb on the instance would, at any later time, and close the server for it.
    """
    gone = {"metadata": {"labels": {COMING: None}, "annotations": {EXCHANGING: None}}}
    for name in (exchange.here, exchange.there):
        _write(writer, name, fence, gone)


def journal_of(found: Object | None) -> Exchange | None:
    """Return which exchange a namespace says that it takes part in."""
    told = annotation(found, EXCHANGING)
    return Exchange(**json.loads(told)) if told else None


def annotation(found: Object | None, name: str) -> str:
    """Return an annotation of an object, or nothing."""
    return str(((found or {}).get("metadata", {}).get("annotations") or {}).get(name) or "")


def exchanged(found: Object | None) -> bool:
    """Tell of an instance's namespace whether its server has what was restored, or is bound to get it."""
    return annotation(found, EXCHANGED) == "true"


def _of(server_id: str, instance_of: str | None) -> Object:
    return {"metadata": {"labels": {SERVER: server_id}, "annotations": {INSTANCE_OF: instance_of}}}


def _write(writer: Writer, name: str, fence: int, change: Object) -> None:
    if writer.change(paths(name).namespace, fence, lambda _: change) is None:
        raise ProviderError(
            f"The namespace {name} is gone from the cluster, so the exchange can't be made. Nothing was removed by "
            "Hearth. Support must look into the cluster.",
            code="NoSuchServer",
            retry=False,
        )


def _choose(settled: Sequence[Object], coming: Sequence[Object], named: Sequence[Object]) -> Object | None:
    return next(iter((*settled, *coming, *named)), None)


def _name(found: Object) -> str:
    return str(found["metadata"]["name"])


def _label(found: Object, name: str) -> str:
    return str((found["metadata"].get("labels") or {}).get(name) or "")


def _coming(found: Object) -> str:
    return _label(found, COMING)
