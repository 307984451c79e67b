"""How far a server's recovery is, and what may be done next for it. Pure functions: `spec.recovery` and what is seen.

The pod restores onto its own volume and serves a copy; only when that is written down is the Cluster made, as a copy
of it, and once that is healthy all is done. So an operator that comes anew knows from the status where it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from provisioning.operator.children import Place
from provisioning.operator.observed import Observed, Told, condition

CLUSTER = Place("Cluster", "postgres")
RUNNING, DONE, FAILED, CANCELLED = "running", "done", "failed", "cancelled"
COPY = "copy"
REASONS = {RUNNING: "Recovering", DONE: "Recovered", FAILED: "RecoveryFailed", CANCELLED: "RecoveryCancelled"}
"""Why such a server is not Ready."""
LONGEST = 1900


def progress(spec: Mapping[str, Any], status: Mapping[str, Any], seen: Observed) -> dict[str, Any] | None:
    """Return `status.recovery`; None where there is nothing to say. What is done stays said."""
    before = dict(status.get("recovery") or {})
    wanted = spec.get("recovery")
    if not wanted:
        return before if before.get("state") == DONE else None
    found = {"revision": wanted["secret"]["revision"], "mode": "settle" if wanted.get("settle") else "restore"}
    same = all(before.get(key) == text for key, text in found.items())
    if same and before.get("state") in (DONE, FAILED):
        return before
    if found["mode"] == "restore" and _is_done(before, status, seen):
        # Asked for again by somebody who did not know yet that it is done. They settle what is here afterwards.
        return before | found
    step = {"step": COPY, "result": before.get("result") or {}} if _copies(before, found["mode"]) else {}
    if wanted.get("cancelled"):
        return found | {"state": CANCELLED} | step
    if found["mode"] == "restore" and CLUSTER in seen.children:
        return found | (_copied(step, seen) if step else _NOT_EMPTY)
    return found | _told(found["revision"], before if same else {}, step, seen.recovery)


def rests(found: Mapping[str, Any] | None, seen: Observed) -> bool:
    """Say whether the pod has nothing to do, or may not begin: as long as somebody else may write."""
    busy = any(each.replicas for _name, each in seen.synapses())
    return busy or found is None or found["state"] != RUNNING


def copies(spec: Mapping[str, Any], status: Mapping[str, Any]) -> bool:
    """Say whether the database may be copied: it is written down that there is one to copy."""
    wanted = spec.get("recovery") or {}
    return _copies(status.get("recovery") or {}, "settle" if wanted.get("settle") else "restore", done=True)


def sentence(found: Mapping[str, Any]) -> str:
    """Return for a person how far it is."""
    if found["state"] == DONE:
        return "What was backed up is here again, and nobody uses it yet."
    if found["state"] == CANCELLED:
        return "Bringing it back was cancelled. What was fetched stays for another try."
    if found["state"] == FAILED:
        return str(found.get("text") or "It could not be brought back.")
    text = f" {found['text']}" if found.get("text") else ""
    return f"It is being brought back from its backups ({found.get('step') or 'begin'}).{text}"


def _copies(before: Mapping[str, Any], mode: str, *, done: bool = False) -> bool:
    begun = before.get("mode") == mode == "restore" and before.get("step") == COPY
    return begun and (done or before.get("state") != DONE)


def _is_done(before: Mapping[str, Any], status: Mapping[str, Any], seen: Observed) -> bool:
    """Say whether the Cluster holds what was brought back, and nobody has lived on it since."""
    whole = before.get("mode") == "restore" and before.get("state") == DONE and CLUSTER in seen.children
    return whole and condition(status, "Ready").get("reason") == REASONS[DONE]


_NOT_EMPTY: dict[str, Any] = {
    "state": FAILED,
    "code": "NotEmpty",
    "text": "There is a database here already, so nothing was brought back. Nothing was changed.",
}


def _copied(step: Mapping[str, Any], seen: Observed) -> dict[str, Any]:
    database = seen.database()
    if database is not None and database.healthy and not seen.children[CLUSTER].stale:
        return {"state": DONE, **step}
    said = " ".join(text for text in (database.phase, database.message) if text) if database else ""
    return _full({"state": RUNNING, **step, "text": said[:LONGEST]})


def _told(revision: str, before: Mapping[str, Any], step: dict[str, Any], told: Told | None) -> dict[str, Any]:
    """Return what the pod says of this revision; what it said before while it does not answer."""
    at = {**step} or {"step": str(before.get("step") or "begin")}
    if told is None or not told.answered or told.recovery.get("revision") != revision:
        known = {key: before[key] for key in ("doneBytes", "totalBytes") if key in before and not step}
        reason, text = (told.reason, told.message[:LONGEST]) if told is not None else ("", "")
        return _full({"state": RUNNING, **known, **at, "code": reason, "text": text})
    said = told.recovery
    trouble = {"code": _text(said, "code", 100), "text": _text(said, "text", LONGEST)}
    if said.get("state") == FAILED:
        return _full({"state": FAILED, **at, **trouble, "retry": said.get("retry") is True})
    result = said.get("result") if isinstance(said.get("result"), Mapping) else {}
    if said.get("state") == DONE:
        return _full({"state": DONE, "step": _text(said, "step", 63), "result": result})
    if said.get("state") == "serving":
        return _full({"state": RUNNING, **_figures(said), "step": COPY, "result": result})
    return _full({"state": RUNNING, **_figures(said), "step": _text(said, "step", 63), **step, **trouble})


def _figures(said: Mapping[str, Any]) -> dict[str, Any]:
    names = {"doneBytes": "done_bytes", "totalBytes": "total_bytes", "secondsLeft": "seconds_left"}
    found = {ours: said.get(theirs) for ours, theirs in names.items()}
    return {name: int(each) for name, each in found.items() if isinstance(each, int | float) and 0 <= each < 2**53}


def _text(said: Mapping[str, Any], name: str, longest: int) -> str:
    return str(said.get(name) or "")[:longest]


def _full(found: Mapping[str, Any]) -> dict[str, Any]:
    return {key: each for key, each in found.items() if each not in ("", {}, None) and each is not False}
