"""A recovery test: a server's newest backups are brought back into a throw-away instance, which must be that server.

    begin     choose restore point, moment and place, when there is room; the clock starts
    recover   a grant for its keys, and the order to the provider
    follow    look how far the provider is
    check     start PostgreSQL and Synapse on it, protocol checks, a login; the clock stops (RTO)
    compare   accounts and a room with what the living server says of them

The living server is only asked; nothing of it is stopped or changed, and its customers' verbs never wait for this.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta

from django.db import transaction
from django.utils import timezone
from django.views.decorators.debug import sensitive_variables

from audit.services import SYSTEM
from backups import checking, recoveries
from backups.models import Line, RestorePoint, ServerBackups, Store
from backups.proofs import comparing, ends, room
from backups.proofs.context import Context, Missed, NotYet, Unproved, region_of
from backups.proofs.models import Drill, Proof
from backups.regions import is_first, stores_of, whole_in
from provisioning import checks
from provisioning.fleet import provider_for
from provisioning.models import ServerStatus
from provisioning.providers.base import Provider, Recovering
from security.datakeys import grants
from security.datakeys.errors import GrantTaken
from tenants.models import Server

POLL, FULL, TAKEN = timedelta(seconds=2), timedelta(seconds=30), timedelta(minutes=10)
TOO_LATE = timedelta(days=1)
TRIES = 3
"""How often a recovery that may succeed later is begun."""
NOT_OURS = {"DiskFull", "NotHere", "AgentUnreachable"}
"""Codes that say that the place could not do it, and nothing about the backups."""


def begin(context: Context) -> None:
    """Choose what is brought back, and begin when there is room for it."""
    proof, server = context.proof, context.server
    if server.deleted or server.desired == Server.Desired.DELETED:
        raise Missed("The server is being deleted.")
    if proof.drill is None and timezone.now() - proof.begun > TOO_LATE:
        raise Missed("There was no room for it for a day.")
    if not ends.remove_instance(proof):
        raise NotYet(FULL)
    region = proof.region or region_of(server)
    store = proof.store or first_store(server)
    point = newest(server, store)
    now = timezone.now()
    moment = moment_of(server, store, point)
    evidence = {"store": store.code, "region": region.code, "line": point.line, "load": os.getloadavg()[0]}
    with transaction.atomic():
        room.take_turns(region)
        if not (room.has_room(region, proof.drill) and room.has_disk(region, point)):
            raise NotYet(FULL)
        context.lease.set(
            step="recover", instance=uuid.uuid4(), removed=None, region=region, store=store, point=point.identity,
            moment=moment, begun=now, evidence=evidence, failures=0, done_bytes=0, total_bytes=0, rto_seconds=None,
            rpo_seconds=lost_seconds(proof.drill, moment or point.at, now),
        )  # fmt: skip


@sensitive_variables()
def recover(context: Context) -> None:
    """Ask the provider to bring it back, under a grant of this proof."""
    proof, server, fence = context.proof, context.server, context.lease.fence
    try:
        grant = context.open_grant(f"Recovery test of {server.server_name}")
    except GrantTaken:  # its people restore it: that comes first, and the clock starts anew
        context.lease.set(step="begin")
        raise NotYet(TAKEN) from None
    spec = context.spec(version_of(context))
    # Behind the point it is the latest that the store has, and no time: of a server at rest a store alone can tell
    # only when its newest WAL came, and that is before what its engine has seen. What is compared is of before both.
    wanted = recoveries.Wanted(
        source=server, store=context.store, point="" if proof.moment else proof.point, moment=None
    )
    asked = recoveries.recovery(wanted, spec, holder=server.pk, grant=grant.pk, settle=recoveries.settle(None))
    asked = replace(asked, request={**asked.request, "check": True})
    context.provider.prepare(spec.version, lambda _: None)
    context.provider.recover(spec, asked, fence=fence, progress=lambda _: None)
    context.lease.set(step="follow")


def follow(context: Context) -> None:
    """Look how far it is."""
    proof = context.proof
    if proof.grant is None or proof.grant_fence != proof.fence or not _renewed(context):
        context.lease.set(step="recover")  # another worker had begun it: its grant ends, the recovery goes on
        return
    found = context.provider.recovering(str(proof.instance))
    if found.state == "running":
        context.lease.set(done_bytes=max(found.done_bytes, 0), total_bytes=max(found.total_bytes, 0))
        raise NotYet(POLL)
    if found.state != "done":
        _again_or_failed(context, found)
        return
    ends.revoke(context.lease, "all that it opens is restored")
    kept = ("point", "reached", "last_commit", "media_files", "media_hashed", "seconds", "checked")
    restored = {name: found.result[name] for name in kept if name in found.result}
    context.lease.set(step="check", failures=0, evidence=proof.evidence | {"restored": restored})


@sensitive_variables()
def check(context: Context) -> None:
    """Start it, and ask what a client and another server would ask."""
    proof, fence = context.proof, context.lease.fence
    spec = context.spec(version_of(context))
    context.provider.configure(spec, fence=fence, progress=lambda _: None)
    url = context.provider.start(spec, fence=fence, progress=lambda _: None)
    route = context.provider.route(str(proof.instance), url)
    found = checks.run(route, context.server.server_name, context.secrets)
    seconds = max(0.0, (timezone.now() - proof.begun).total_seconds())
    told = {"synapse_version": found.version, "signing_key_id": found.key_id, "signed_in": True}
    evidence = proof.evidence | {"checks": told, "address": route}
    if proof.drill is not None and proof.drill.begun is not None:
        # In a drill the clock of all began with the loss: waiting for one's turn counts.
        evidence["own_seconds"], seconds = seconds, max(0.0, (timezone.now() - proof.drill.begun).total_seconds())
    context.lease.set(step="compare", failures=0, rto_seconds=seconds, evidence=evidence)


@sensitive_variables()
def compare(context: Context) -> None:
    """Compare what came back with what the living server says of the time before, and end."""
    proof, server = context.proof, context.server
    until = (proof.moment or _point(context).at) - comparing.MARGIN
    living = ServerStatus.objects.values_list("homeserver_url", flat=True).filter(server=server).first() or ""
    if living and proof.drill is None:
        living = provider_of(server).route(str(server.pk), living)
    found = comparing.compare(
        str(proof.evidence["address"]),
        "" if proof.drill else living,  # a region that is lost answers nothing
        server.server_name,
        context.secrets["jwt"],
        until,
    )
    context.note(compared=found.told)
    if found.wrong:
        raise Unproved("The server came back, but lacks something that it had: " + " ".join(found.wrong))
    ends.end(context.lease, Proof.Result.PASSED, summary(proof))


STEPS: dict[str, Callable[[Context], None]] = {
    "begin": begin,
    "recover": recover,
    "follow": follow,
    "check": check,
    "compare": compare,
}


def summary(proof: Proof) -> str:
    """Say in plain words what a test that passed has shown."""
    told = proof.moment or proof.point
    at = f"{told:%Y-%m-%d %H:%M:%S} UTC" if isinstance(told, datetime) else f"restore point {told}"
    compared = proof.evidence.get("compared", {})
    files = proof.evidence.get("restored", {}).get("media_files", 0)
    return (
        f"The server of {at} was back after {proof.rto_seconds or 0:.0f} seconds: it answered, signed with its own key "
        f"and let Hearth sign in. It has {compared.get('accounts', 0):,} accounts, {compared.get('rooms', 0):,} rooms "
        f"and {files:,} files."
    )


def newest(server: Server, store: Store) -> RestorePoint:
    """Return the newest whole restore point in that store. Raises `Missed`."""
    point = whole_in(server, store).order_by("-at").first()
    if point is None:
        raise Missed(f"There is no whole restore point in the store “{store}”, so nothing could be brought back.")
    return point


def moment_of(server: Server, store: Store, point: RestorePoint) -> datetime | None:
    """Return the newest moment of that point's line; None where there is none behind the point."""
    until = Line.objects.filter(server=server, identity=point.line).values_list("until", flat=True).first()
    if not is_first(server, store):
        copied = ServerBackups.objects.filter(server=server).values_list("copied_until", flat=True).first()
        until = min(until, copied) if until and copied else None
    return until if until is not None and until > point.at else None


def lost_seconds(drill: Drill | None, until: datetime, now: datetime) -> float:
    """Return how much work a loss would have cost: of now, or of when the drill's region was lost."""
    at = drill.begun if drill is not None and drill.begun is not None else now
    return max(0.0, (at - until).total_seconds())


def version_of(context: Context) -> str:
    """Return the Synapse version that the restored database is of."""
    return _point(context).synapse_version or context.server.version


def provider_of(server: Server) -> Provider:
    """Return the provider of the living server."""
    return provider_for(region_of(server))


def _point(context: Context) -> RestorePoint:
    return RestorePoint.objects.get(server=context.server, identity=context.proof.point)


def first_store(server: Server) -> Store:
    """Return where the server's engine writes. Raises `Missed`."""
    stores = stores_of(server)
    if stores is None:
        raise Missed("The region has no store for backups.")
    return stores.first


def _renewed(context: Context) -> bool:
    """Have a live grant for long enough. False where it has ended."""
    try:
        return grants.keep(SYSTEM, context.proof.grant, fence=context.proof.grant_fence) is not None
    except GrantTaken:
        return False


def _again_or_failed(context: Context, found: Recovering) -> None:
    """Begin a recovery again that may succeed later; else say what failed, and which restore points that concerns."""
    proof = context.proof
    if (found.retry or found.state == "none") and proof.failures < TRIES:
        context.lease.set(step="recover", failures=proof.failures + 1)
        raise NotYet(POLL * 2**proof.failures)
    text = found.text or "The recovery was ended by somebody else."
    evidence = proof.evidence | {"code": found.code}
    if found.code in NOT_OURS:
        raise Missed(text, evidence=evidence)
    if found.code == "Damaged":
        rows = RestorePoint.objects.filter(server=context.server).exclude(state=RestorePoint.State.GONE)
        identities = list(rows.values_list("identity", flat=True))
        hit = [each for each in identities if each in text]  # the engine names them in its sentence
        ends.mark_damaged(context.server.pk, dict.fromkeys(hit, text))
        ends.read_soon(context.server.pk)
        evidence |= {checking.DAMAGED_POINTS: hit, "sound_restore_points": len(identities) - len(hit)}
    raise Unproved(text, evidence=evidence)
