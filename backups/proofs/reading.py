"""The full read of a restore point, once a week for each server: every byte, as a restore would see it.

It runs in a worker of Hearth. The worker opens no key that an agent could not open either: each goes through the same
check as an agent's (`security.datakeys.services.unwrap`), under a grant for this server's backups that lives only as
long as the read and is in the audit trail (decision 23).
"""

from __future__ import annotations

import base64
import contextlib
import functools
import threading
import time
import uuid
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from django.conf import settings
from django.db import connection
from django.utils import timezone
from django.views.decorators.debug import sensitive_variables

from audit.services import SYSTEM
from backups import checking, places, wiring
from backups.engine import fullread, verify
from backups.engine.catalogue import Catalogue
from backups.engine.objects import Vault
from backups.engine.rate import Rate
from backups.engine.stores.base import Store
from backups.models import Line, RestorePoint
from backups.policies import policy_of
from backups.proofs import ends, recovery
from backups.proofs.context import Context, Missed, NotYet, Unproved
from backups.proofs.models import Proof
from backups.regions import is_first
from provisioning import engine
from security.datakeys import grants, services
from security.datakeys.errors import GrantEnded, GrantTaken, NotFound, TooMany
from security.keyring.publish import database_time
from security.models import UnwrapGrant
from security.secret import Key
from security.streams import DataKey

SHOWN = 20
LATER = timedelta(minutes=10)
RENEW = 600.0
"""Seconds after which the grant is renewed."""
State = RestorePoint.State


def begin(context: Context) -> None:
    """Choose what is read, when not too many are read already."""
    proof, server = context.proof, context.server
    if server.deleted:
        raise Missed("The server was deleted.")
    store = proof.store or recovery.first_store(server)
    busy = Proof.objects.filter(kind=Proof.Kind.READING, result="", step="read").count()
    if busy >= int(settings.HEARTH["HEARTH_FULL_READS"]):
        raise NotYet(LATER)
    point = recovery.newest(server, store)
    context.lease.set(step="read", store=store, point=point.identity, begun=timezone.now(), failures=0, evidence={})


def read(context: Context) -> None:
    """Read it to the last byte. Cut off, the whole restore point is read again: half a read proves nothing."""
    proof, server = context.proof, context.server
    with _stopped(context) as stopped, places.opened(context.store, server.pk) as store:
        catalogue = Catalogue.read(store, str(server.organisation_id), str(server.pk))
        if proof.point not in catalogue.points and _is_gone(context):
            context.lease.set(step="begin")  # it expired meanwhile: another one
            return
        cheap = _look(context, catalogue)
        if proof.point not in catalogue.points:
            _ended(context, catalogue, cheap, None)
            return
        slowed: Any = Slowed(store, stopped)
        vault = Vault(store=slowed, organisation=str(server.organisation_id), server=str(server.pk))
        try:
            with _keys(context) as keys:
                report = fullread.read(
                    catalogue, vault, keys, only=[proof.point], name_key=_name_key(context), stopped=stopped.is_set
                )
        except (GrantEnded, GrantTaken):  # its people restore it: that comes first
            raise NotYet(LATER) from None
        if stopped.is_set():
            raise NotYet(timedelta(0))
    _ended(context, catalogue, cheap, report)


STEPS = {"begin": begin, "read": read}


class Slowed:
    """A store from which at most so many bytes a second are read (`HEARTH_FULL_READ_MBPS`, all reads of a worker)."""

    def __init__(self, store: Store, stopped: threading.Event) -> None:
        self._store = store
        self._stopped = stopped

    def get(self, name: str) -> Iterator[bytes]:
        for piece in self._store.get(name):
            _rate().spend(len(piece), self._stopped)
            yield piece

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


@contextlib.contextmanager
def _keys(context: Context) -> Iterator[Keys]:
    """Give what opens the data keys of the server's backups, under a grant that ends with the block."""
    server = context.server
    grant = context.open_grant(f"Full read of a restore point of {server.server_name}")
    try:
        yield Keys(server.pk, grant)
    finally:
        ends.revoke(context.lease, "the read ended")


class Keys:
    """Opens data keys under a grant, for several threads."""

    def __init__(self, server: uuid.UUID, grant: UnwrapGrant) -> None:
        self._server = server
        self._grant = grant
        self._renewed = time.monotonic()
        self._lock = threading.Lock()
        self._thread = threading.current_thread()

    @sensitive_variables()
    def __call__(self, identity: uuid.UUID) -> DataKey:
        """Return a data key. Raises `LookupError` for one that does not exist, `SecurityError` where none is given."""
        with self._lock:
            if time.monotonic() - self._renewed > RENEW:
                grants.renew(SYSTEM, self._grant.pk, fence=self._grant.fence)
                self._renewed = time.monotonic()
            with self._opened(identity) as key:
                return DataKey(identity, bytes(key.value))

    def _opened(self, identity: uuid.UUID) -> Key:
        try:
            while True:
                try:
                    return services.unwrap(self._server, self._grant.pk, identity)
                except NotFound:
                    raise LookupError(identity) from None
                except TooMany as error:
                    time.sleep(min(error.wait, 5.0))
        finally:
            if threading.current_thread() is not self._thread:
                connection.close()  # this thread's own


def _look(context: Context, catalogue: Catalogue) -> verify.Report:
    """Compare the listing with the manifests, and with what Hearth's own rows say must be there.

    Nothing in a store could tell that its newest part is gone.
    """
    server, store = context.server, context.store
    window, first = database_time() - timedelta(days=policy_of(server).window_days), is_first(server, store)
    # The newest moment of a line may be an hour older than its end: where that left the window, it may have expired.
    since = window + timedelta(days=1)
    rows = Line.objects.filter(server=server, moments__gt=0, until__gt=since) if first else ()
    expected = verify.Expected(
        points=checking.known_points(server, store), moments={row.identity: row.moments - 1 for row in rows}
    )
    return verify.look(catalogue, marks=first, since=window, expected=expected)


def _ended(context: Context, catalogue: Catalogue, cheap: verify.Report, report: verify.Report | None) -> None:
    """Write down what was found. Damage is told of all restore points that it concerns, not of the one alone."""
    found: verify.Found = {each.name: (each.kind, each.text) for each in cheap.damage}
    found |= {each.name: (each.kind, each.text) for each in (report.damage if report else ())}
    points = verify.chosen(catalogue, None)
    full = verify.report(catalogue, points, found, objects=report.objects if report else 0, size=0, full=True)
    evidence = {
        "store": context.store.code,
        "objects": full.objects,
        "bytes": report.bytes if report else 0,
        "hashed": bool(report and report.hashed),
        "damaged_objects": len(full.damage),
        "damage": [{"name": each.name, "kind": each.kind, "text": each.text} for each in full.damage[:SHOWN]],
        checking.DAMAGED_POINTS: list(full.hit),
        "sound_restore_points": list(full.sound),
        "can_be_restored": [[each.begin.isoformat(), each.end.isoformat()] for each in full.windows],
    }
    if not full.damage:
        text = f"{full.objects:,} objects of the restore point were read, decrypted and compared: all are right."
        ends.end(context.lease, Proof.Result.PASSED, text, evidence=evidence)
        return
    ends.mark_damaged(context.server.pk, _texts(full))
    raise Unproved(_told(full), evidence=evidence)


def _texts(report: verify.Report) -> dict[str, str]:
    texts: dict[str, str] = {}
    for each in report.damage:
        for identity in each.points:
            texts.setdefault(identity, each.text)
    return texts


def _told(report: verify.Report) -> str:
    first = report.damage[0].text
    hit = ", ".join(report.hit[:SHOWN]) or "none"
    sound = f"whole are {len(report.sound)} others" if report.sound else "no other is whole"
    return (
        f"{len(report.damage)} objects are damaged or missing. {first} Restore points that need them: {hit}; {sound}. "
        "What the second store has is not touched by this."
    )


@contextlib.contextmanager
def _stopped(context: Context) -> Iterator[threading.Event]:
    """Give an event that is set when the lease is lost, also to a restore that comes first, or this worker ends."""
    stopped, over = threading.Event(), threading.Event()

    def watch() -> None:
        while not over.wait(1.0):
            if context.lost.is_set() or engine.stopping.is_set():
                stopped.set()
                return

    watcher = threading.Thread(target=watch, name=f"reading-{context.proof.pk}", daemon=True)
    watcher.start()
    try:
        yield stopped
    finally:
        over.set()
        watcher.join()


def _is_gone(context: Context) -> bool:
    rows = RestorePoint.objects.filter(server=context.server, identity=context.proof.point)
    return rows.filter(state=State.GONE).exists()


@sensitive_variables()
def _name_key(context: Context) -> bytes:
    return base64.b64decode(str(wiring.ensure(context.server).name_key))


@functools.lru_cache(maxsize=1)
def _rate() -> Rate:
    """Return the bound that all reads of this worker share."""
    return Rate(float(settings.HEARTH["HEARTH_FULL_READ_MBPS"]) * 2**20)
