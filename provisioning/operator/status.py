"""A MatrixServer's status: a pure function of what was observed. One named reason for each cause of waiting."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from provisioning.operator import recovery
from provisioning.operator.children import Place
from provisioning.operator.keeping import DATA_MISSING
from provisioning.operator.observed import AGENT, GENERIC, MAIN, WORKLOADS, Fault, Observed, Told, condition
from provisioning.operator.plan import UPGRADE_FAILED, Plan

Judgement = tuple[str, str, str]
"""A condition's status, reason and message."""

CLOSED = "Closed"
LONGEST = 1900  # characters of a message
GRACE = (
    10.0  # seconds in which a server whose main process is ready may fail to answer: just started, or once by chance
)


def compute(server: Mapping[str, Any], plan: Plan, seen: Observed) -> dict[str, Any]:
    """Return the status of a server. `server` is the MatrixServer with the status it has now."""
    spec, before = server["spec"], server.get("status") or {}
    generation = int(server["metadata"].get("generation") or 0)
    trouble, lost = _trouble(plan, seen), _lost(seen)
    progressing = _progressing(server, plan, seen)
    judged = {
        "Ready": _idle(spec, plan) or _ready(server, seen, trouble, progressing),
        "Progressing": progressing,
        "Degraded": ("True", trouble.reason, trouble.message) if trouble else ("False", "AsExpected", ""),
        "DatabaseReady": _database(spec, seen),
        "CertificateReady": _certificate(spec, seen),
        "BackupReady": _backup(spec, seen),
    }
    if lost and judged["Ready"][1] != CLOSED and not {"suspended", "recovery"} & set(spec):
        judged["Ready"] = "False", lost.reason, lost.message
    generic = seen.workload(GENERIC)
    found: dict[str, Any] = {
        "observedGeneration": generation,
        "replicas": generic.ready if generic else 0,
        "selector": generic.selector if generic else "",
        "address": f"https://{spec['publicHost']}",
        "components": _components(seen),
        "conditions": [_condition(kind, each, before, generation, seen.now) for kind, each in judged.items()],
    }
    found |= _answered(server, plan, seen, judged["Ready"][0] == "True")
    if plan.recovery:
        found["recovery"] = dict(plan.recovery)
    return found


def _idle(spec: Mapping[str, Any], plan: Plan) -> Judgement | None:
    """Return why nobody is to be served, where that is so. (Of a suspended server `_ready` says it.)"""
    if "suspended" in spec:
        return None
    if "recovery" in spec and plan.recovery:
        return "False", recovery.REASONS[plan.recovery["state"]], recovery.sentence(plan.recovery)
    if spec.get("closed") and not plan.step:
        return "False", CLOSED, "This server is closed: nobody may use or change its data now."
    return None


def _answered(server: Mapping[str, Any], plan: Plan, seen: Observed, ready: bool) -> dict[str, Any]:
    before = server.get("status") or {}
    probe = seen.probe
    kept = {key: before[key] for key in ("version", "signingKeyId", "release") if before.get(key)}
    if probe is None or not probe.ok:
        return kept
    now = {"version": probe.version, "signingKeyId": probe.signing_key_id}
    found = {**kept, **{key: text for key, text in now.items() if text}}
    synapse, images, main = plan.spec["synapse"], plan.spec["images"], seen.workload(MAIN)
    # Before the new process has taken over it is still the old one that answers.
    if ready and main is not None and main.settled and main.image == images["synapse"]:
        schema = _schema(plan, before)
        found["release"] = {"version": synapse["version"], "image": images["synapse"], "schemaVersion": schema}
    return found


def _schema(plan: Plan, before: Mapping[str, Any]) -> int:
    """Return the schema that the release which runs has, which after a way back is older than the database's."""
    synapse = plan.spec["synapse"]
    release = before.get("release") or {}
    if plan.fault and plan.fault.reason == UPGRADE_FAILED and release:
        return int(release.get("schemaVersion") or 0)
    return int(synapse.get("releaseSchemaVersion") or synapse["schemaVersion"])


def _trouble(plan: Plan, seen: Observed) -> Fault | None:
    """Return the gravest thing that is wrong."""
    refused = min(seen.faults.items(), default=None)
    child = refused and Fault(refused[1].reason, f"{refused[0]}: {refused[1].message}")
    # First what the plan says: that an upgrade has failed is remembered by the condition which says it.
    return _lost(seen) or plan.fault or seen.fault or child or seen.diagnosis or next(_troubles(seen), None)


def _lost(seen: Observed) -> Fault | None:
    """Return that data is missing. A server that still answers without it is not Ready."""
    return next((each for _place, each in sorted(seen.faults.items()) if each.reason == DATA_MISSING), None)


def _troubles(seen: Observed) -> Iterator[Fault]:
    for name, volume in seen.volumes():
        if volume.reason:
            text = f"The volume {name} could not grow: {volume.message} No data is lost."
            yield Fault("VolumeResizeFailed", text)
    for name, work in seen.workloads():
        if work.reason and work.desired != work.ready:
            yield _refused(name, work.reason, work.message)
    for each in seen.certificates():
        if not each.ready and each.reason in FAILED_CERTIFICATE:
            yield Fault("CertificateFailed", each.message)
    if seen.probe and not seen.probe.ok and seen.probe.since >= GRACE and _main_settled(seen):
        yield Fault("NotAnswering", seen.probe.message)


FAILED_CERTIFICATE = {"Failed", "InvalidRequest", "Denied", "IncorrectIssuer", "ErrInitIssuer", "IssuerNotFound"}


def _refused(name: str, reason: str, message: str) -> Fault:
    if "exceeded quota" in message:
        return Fault(
            "QuotaExceeded", f"{name} needs more than this server's quota allows, so processes are missing: {message}"
        )
    if reason == "ProgressDeadlineExceeded":
        return Fault("NotProgressing", f"{name} has not become ready for a long time: {message}")
    return Fault("PodsRefused", f"The cluster refuses to start {name}: {message}")


def _main_settled(seen: Observed) -> bool:
    main = seen.workload(MAIN)
    return main is not None and main.settled and main.desired > 0


def _unsettled(seen: Observed, *, closed: bool) -> list[str]:
    """Return what is under way. A closed server waits for no database: a broken one may be why it was closed."""
    names = [name for name, each in seen.workloads() if not each.settled]
    database = None if closed else seen.database()
    if database and not (database.healthy or database.hibernated):
        names.append("postgres")
    return list(dict.fromkeys([*names, *seen.untold(WORKLOADS if closed else WORKLOADS | {"Cluster"})]))


def _ready(server: Mapping[str, Any], seen: Observed, trouble: Fault | None, progressing: Judgement) -> Judgement:
    spec, was = server["spec"], condition(server.get("status") or {}, "Ready")
    if "suspended" in spec:
        return "False", "Suspended", "This server is suspended. Its data is kept."
    main = seen.workload(MAIN)
    if main is not None and main.ready and seen.probe is not None and seen.probe.ok:
        wrong = _wrong_key(spec, seen)
        return ("False", wrong.reason, wrong.message) if wrong else ("True", "Answers", "The server answers clients.")
    if main is not None and main.ready and _undecided(seen) and was.get("status") == "True":
        return "True", str(was["reason"]), str(was["message"])
    if trouble:
        return "False", trouble.reason, trouble.message
    if progressing[0] == "True":
        return "False", progressing[1], progressing[2]
    return "Unknown", "NotAsked", "The server has not been asked yet."


def _undecided(seen: Observed) -> bool:
    """Say whether it is not known (yet) if the server answers."""
    return seen.probe is None or (not seen.probe.ok and seen.probe.since < GRACE)


def _wrong_key(spec: Mapping[str, Any], seen: Observed) -> Fault | None:
    expected = spec["secret"].get("signingKeyId")
    found = seen.probe.signing_key_id if seen.probe else ""
    if not expected or not found or found == expected:
        return None
    text = f"The server answers with the key {found}, not with its own key {expected}. Other servers would refuse it."
    return Fault("SigningKeyMismatch", f"{text} Nothing was lost; check the server's Secret.")


def _progressing(server: Mapping[str, Any], plan: Plan, seen: Observed) -> Judgement:
    before = server.get("status") or {}
    if plan.step:
        return "True", plan.step, plan.message
    closed = bool(server["spec"].get("closed"))
    growing = [name for name, each in seen.volumes() if each.growing]
    if growing and not closed:  # a file system grows when somebody uses it
        return "True", "Resizing", f"Waiting for the volumes {', '.join(growing)} to grow."
    unsettled = _unsettled(seen, closed=closed)
    new = not (before.get("release") or condition(before, "Ready").get("status") == "True")
    if unsettled or seen.pending or seen.workload(MAIN) is None:
        waits = f"Waiting for {', '.join(unsettled)}." if unsettled else "Waiting for the cluster to take its parts."
        return "True", "Creating" if new else "RollingOut", waits
    serves = not ({"suspended", "recovery"} & set(server["spec"]) or closed)
    if serves and (seen.probe is None or not seen.probe.ok):
        # What is under way has ended only when the server answers, or is known not to.
        was = condition(before, "Progressing").get("status") == "True"
        if new or (was and _undecided(seen)):
            return "True", "Creating" if new else "RollingOut", "Waiting for the server to answer."
    return "False", "Settled", ""


def _database(spec: Mapping[str, Any], seen: Observed) -> Judgement:
    if "managed" in spec["database"]:
        return _managed(spec, seen)
    database = seen.database()
    lost = seen.faults.get(Place("Cluster", "postgres"))
    if lost and lost.reason == DATA_MISSING:
        return "False", lost.reason, lost.message
    if database is None:
        return "Unknown", "NotMade", "The database cluster is not there yet."
    if database.hibernated:
        return "False", "Hibernated", "The database sleeps while the server is suspended. Its data is kept."
    if database.healthy:
        return "True", "Healthy", f"{database.ready} of {database.instances} instances are ready."
    detail = " ".join(text for text in (database.phase, database.message) if text)
    return "False", "NotReady", detail or "Waiting for the database cluster."


def _managed(spec: Mapping[str, Any], seen: Observed) -> Judgement:
    host = spec["database"]["managed"]["host"]
    if seen.diagnosis and seen.diagnosis.reason.startswith("Database"):
        return "False", seen.diagnosis.reason, seen.diagnosis.message
    if seen.probe and seen.probe.ok:
        return "True", "Reached", f"The server works with the database at {host}."
    return "Unknown", "NotAsked", f"The server that uses the database at {host} does not answer yet."


def _certificate(spec: Mapping[str, Any], seen: Observed) -> Judgement:
    routing = spec["routing"]
    if routing.get("unrouted"):
        return "True", "Unrouted", "Nobody outside reaches this server, so it needs no certificate."
    if "certificateSecret" in routing:
        return "True", "Given", f"The certificate is in the Secret {routing['certificateSecret']}."
    if "certificate" not in routing:
        return "True", "FromController", "The ingress controller, gateway or load balancer has a certificate."
    found = seen.certificates()
    if not found:
        return "Unknown", "NotMade", "The certificate has not been asked for yet."
    for each in found:
        if not each.ready:
            return "False", _name(each.reason, "NotIssued"), each.message or "Waiting for the certificate."
    return "True", "Issued", ""


def _backup(spec: Mapping[str, Any], seen: Observed) -> Judgement:
    if not (spec.get("backup") or {}).get("enabled"):
        return "False", "NotEnabled", "Backups are not enabled for this server."
    if "suspended" in spec:
        return "False", "Suspended", "The server is suspended. What was stored before stays."
    database, identity, agent = seen.database(), seen.identity(), seen.agent()
    if agent is not None and not agent.desired:
        return "False", "Paused", "Backups are paused. What was stored stays, and they go on from where they were."
    if database and database.backed_up is False:
        return "False", "LastBackupFailed", "The last snapshot of the database failed."
    if identity is not None and not identity.ready:
        text = identity.message or "cert-manager has not made it yet."
        return "False", "IdentityNotIssued", f"The backup agent has no certificate for Hearth: {text}"
    return _told(seen.backup)


def _told(told: Told | None) -> Judgement:
    if told is None:
        return "Unknown", "NotReported", "The backup agent has not reported yet."
    if not told.answered:
        return "False" if told.reason else "Unknown", told.reason or "AgentSilent", told.message
    return "True" if told.ready else "False", _name(told.reason, "NotWritten"), told.message


def _name(text: str, otherwise: str) -> str:
    return text if text[:1].isupper() and text.isalnum() and len(text) <= 100 else otherwise


def _components(seen: Observed) -> list[dict[str, Any]]:
    found: Iterable[dict[str, Any]] = (
        {"name": name, "desired": each.desired, "ready": each.ready, "updated": each.updated}
        for name, each in seen.workloads()
    )
    database, agent = seen.database(), seen.agent()
    extra = [{"name": "postgres", "desired": database.instances, "ready": database.ready}] if database else []
    if agent is not None:
        extra.append({"name": AGENT.name, "desired": agent.desired, "ready": agent.ready})
    return [*found, *extra]


def _condition(kind: str, judged: Judgement, before: Mapping[str, Any], generation: int, now: float) -> dict[str, Any]:
    status, reason, message = judged
    held = condition(before, kind)
    # A step's own time is what its limit counts from, so another reason to be under way is a transition too.
    same = held.get("status") == status and (kind != "Progressing" or held.get("reason") == reason)
    since = held.get("lastTransitionTime") if same else None
    return {
        "type": kind,
        "status": status,
        "reason": reason,
        "message": message[:LONGEST],
        "lastTransitionTime": since or dt.datetime.fromtimestamp(int(now), dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "observedGeneration": generation,
    }
