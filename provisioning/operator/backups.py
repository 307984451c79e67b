"""How a server's backups are, as its agent tells, and the last of them.

The agent has no account in the API server and the operator no right for this: it asks over HTTP, as it asks Synapse.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import aiohttp
import orjson

from provisioning.operator.children import KINDS, Place
from provisioning.operator.diagnosis import diagnose_agent
from provisioning.operator.kube.client import Client
from provisioning.operator.kube.errors import ApiError
from provisioning.operator.notices import Notices
from provisioning.operator.observed import AGENT, NO_FINAL, Final, Observed, Told
from provisioning.operator.probe import small, wary
from provisioning.operator.store import Store

log = logging.getLogger(__name__)

SOON, SETTLED = 5.0, 300.0  # seconds between two questions while backups are not well, and while they are
STORE_LIMIT = 300.0  # seconds for which a suspension waits until everything is stored
SILENCE = 900.0  # seconds without an answer after which a removal goes on without a final backup
STALLED = 3600.0  # and with answers that tell of no progress: many media are looked through without a word
LONGEST = 1000  # characters of what an agent says
ORDER = uuid.UUID("5a1c64f2-2f0b-4f0e-9a53-7c1f2f3a6d10")
"""Makes the id of a final backup from the MatrixServer's, so that every operator orders the same one."""
SILENT = Told(False, message="The backup agent does not answer. What is stored stays.")


class Agents:
    """Asks agents. `address` has `{namespace}` where the server's namespace belongs."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._session = wary(aiohttp.TCPConnector(limit=64, force_close=True))

    async def close(self) -> None:
        """Close the connections."""
        await self._session.close()

    async def ask(self, namespace: str, wish: str = "", identity: str = "") -> Told:
        """Return how backups are; with a wish (`store-all`, `final`) after it was told. Never raises."""
        base = self._address.format(namespace=namespace)
        method, path = ("POST", f"/{wish}") if wish else ("GET", "/status")
        query = {"id": identity} if wish else None
        try:
            async with self._session.request(method, base + path, params=query, allow_redirects=False) as response:
                found = orjson.loads(await small(response))
                return _told(found) if response.status in (200, 202) and isinstance(found, dict) else SILENT
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError):
            return SILENT


def _told(found: Mapping[str, Any]) -> Told:
    final = found.get("final")
    final = final if isinstance(final, Mapping) else {}
    done = final.get("done_bytes")
    return Told(
        True,
        found.get("ready") is True,
        _word(found.get("reason")),
        str(found.get("text") or "")[:LONGEST],
        _word(found.get("stored")),
        Final(_word(final.get("id")), _word(final.get("state")), _word(final.get("point")), _number(done)),
    )


def _word(found: object) -> str:
    return str(found or "")[:100]


def _number(found: object) -> int:
    return found if isinstance(found, int) else 0


@dataclass(slots=True)
class _Known:
    """What is remembered of one server. Losing it costs a question."""

    uid: str = ""
    told: Told | None = None
    state: tuple[Any, ...] = ()
    due: float = 0.0
    wish: str = ""
    since: float = 0.0
    """When the wish was told first, or its fulfilment came nearer last."""
    final: Final = NO_FINAL


class Backups:
    """All servers' backups, as far as the operator has to do with them."""

    def __init__(self, agents: Agents, client: Client, store: Store, notices: Notices) -> None:
        self._agents, self._client, self._store, self._notices = agents, client, store, notices
        self._known: dict[str, _Known] = {}

    def forget(self, namespace: str) -> None:
        """Forget a server that is gone."""
        self._known.pop(namespace, None)

    async def look(self, server: Mapping[str, Any], seen: Observed) -> tuple[Told | None, float]:
        """Return what its agent tells, asked anew where that is due, and the seconds until it is again (0: never)."""
        spec, agent = server["spec"], seen.agent()
        if not (spec.get("backup") or {}).get("enabled") or "suspended" in spec or agent is None:
            return None, 0.0
        known, namespace = self._of(server), server["metadata"]["namespace"]
        state = (agent.ready, agent.updated, server["metadata"].get("generation"))
        if known.told is None or known.state != state or time.monotonic() >= known.due:
            told = await self._agents.ask(namespace)
            if not told.answered and not agent.ready:
                told = await self._why(namespace, agent.message)
            known.told, known.state = told, state
            known.due = time.monotonic() + (SETTLED if told.ready else SOON)
        return known.told, max(0.01, known.due - time.monotonic())

    async def _why(self, namespace: str, message: str) -> Told:
        try:
            fault = await diagnose_agent(self._client, namespace)
        except ApiError as error:
            log.info("%s: the agent's pod could not be read: %s", namespace, error)
            return SILENT
        if fault is not None:
            return replace(SILENT, reason=fault.reason, message=f"{fault.message} What is stored stays.")
        return replace(SILENT, reason="AgentStarting", message=message or "The backup agent starts.")

    async def all_stored(self, server: Mapping[str, Any]) -> bool:
        """Say whether all that there is is stored, or can't be within a bounded time."""
        metadata = server["metadata"]
        known, wish = self._of(server), f"{metadata['uid']}/{metadata.get('generation')}"
        if known.wish != wish:
            known.wish, known.since = wish, time.monotonic()
        told = await self._agents.ask(metadata["namespace"], "store-all", wish)
        if told.stored == wish:
            return True
        if time.monotonic() - known.since < STORE_LIMIT:
            return False
        text = "The last changes could not be backed up before the server was suspended. They are in its database and "
        text += "are backed up when it is resumed."
        self._notices.tell(server, "NotBackedUp", text, warn=True)
        return True

    async def final(self, server: Mapping[str, Any]) -> str:
        """Take the last backup of a server that is being deleted: `finalbackup.FinalBackup`."""
        namespace = server["metadata"]["namespace"]
        if not (server["spec"].get("backup") or {}).get("enabled"):
            return ""
        children = self._store.children(namespace)
        agent, seen = children.get(AGENT), Observed(children, time.time())
        if agent is None or agent.deleting:
            return self._without(server, "its parts are being removed already")
        workload = seen.agent()
        if workload is not None and not workload.desired:
            if "suspended" not in server["spec"]:
                return self._without(server, "its backups were paused")
            text = "The server sleeps. What was stored when it was suspended is its last backup."
            self._notices.tell(server, "FinalBackupTaken", text)
            return ""
        if await self._stop(seen, namespace):
            return "Waiting for Synapse to stop before the final backup."
        return await self._finish(server)

    async def _stop(self, seen: Observed, namespace: str) -> bool:
        """Let nobody write any more; say whether somebody still may."""
        running = [name for name, each in seen.synapses() if each.desired or each.replicas]
        for name in running:
            place = next(
                each for each in seen.children if each.name == name and each.kind in ("Deployment", "StatefulSet")
            )
            work = seen.workload(name)
            if work is not None and work.desired and not seen.children[place].deleting:
                await self._scale(namespace, place)
        return bool(running)

    async def _scale(self, namespace: str, place: Place) -> None:
        try:
            await self._client.merge(KINDS[place.kind], namespace, place.name, {"spec": {"replicas": 0}})
        except ApiError as error:
            if error.status != 404:
                raise

    async def _finish(self, server: Mapping[str, Any]) -> str:
        metadata, known = server["metadata"], self._of(server)
        order = str(uuid.uuid5(ORDER, metadata["uid"]))
        told = await self._agents.ask(metadata["namespace"], "final", order)
        if (told.final.order, told.final.state) == (order, "done"):
            self._notices.tell(server, "FinalBackupTaken", f"The final backup is whole: {told.final.point}.")
            return ""
        if known.wish != order or known.final != told.final:
            known.wish, known.final, known.since = order, told.final, time.monotonic()
        if time.monotonic() - known.since > (STALLED if told.answered else SILENCE):
            return self._without(server, told.message or "its agent makes no progress")
        return "Waiting for the final backup." if told.answered else "Waiting for the backup agent to answer."

    def _without(self, server: Mapping[str, Any], why: str) -> str:
        text = f"The server is removed without a final backup: {why}. What was stored before stays where it is."
        self._notices.tell(server, "NoFinalBackup", text, warn=True)
        return ""

    def _of(self, server: Mapping[str, Any]) -> _Known:
        metadata = server["metadata"]
        known = self._known.get(metadata["namespace"])
        if known is None or known.uid != metadata["uid"]:
            known = self._known[metadata["namespace"]] = _Known(metadata["uid"])
        return known
