"""Grants to unwrap: opened, renewed and revoked by whoever restores. Each change and its audit event are one.

A grant is a lease of at most an hour, by the database's clock. A target has one at a time. It is held by an operation
and the fence of that operation's own lease: a worker that slept through its lease can neither renew nor replace the
grant of the worker that took over.
"""

from __future__ import annotations

import uuid
from datetime import timedelta
from typing import Any

from django.db import IntegrityError, transaction
from django.db.models.functions import Now

from audit.services import SYSTEM, record
from security.datakeys.errors import GrantEnded, GrantTaken, KeysErased, Malformed, ServerGone
from security.errors import KeyGone
from security.keyring import keks
from security.keyring.publish import database_time
from security.keyring.seams import seams
from security.models import PLATFORM, UnwrapGrant

LONGEST = timedelta(hours=1)
Purpose = UnwrapGrant.Purpose


def open_grant(
    actor: Any,
    *,
    organisation: uuid.UUID,
    source: uuid.UUID,
    target: uuid.UUID,
    purpose: UnwrapGrant.Purpose,
    holder: uuid.UUID,
    fence: int,
    reason: str,
    lease: timedelta = LONGEST,
) -> UnwrapGrant:
    """Let the agent of `target` open the data keys of the backups of `source`, both of `organisation`, for `lease`.

    `source` may be gone: that is when it is restored. Called again by the same holder with the same fence it returns
    the grant that is there, renewed; a later fence of that holder takes its place. Raises `ServerGone`, `KeysErased`,
    `GrantTaken` while somebody else holds one, and `Malformed`.
    """
    _check(reason, lease)
    if organisation == PLATFORM or owner_of(target) != organisation:
        raise ServerGone(f"The server {target} is gone, or is not this organisation's. Nothing can be restored there.")
    try:
        keks.refuse_erased(organisation)
    except KeyGone as error:
        raise KeysErased(str(error)) from None
    wanted = {"organisation": organisation, "source": source, "purpose": purpose, "holder": holder, "fence": fence}
    try:
        with transaction.atomic():
            if UnwrapGrant.objects.filter(holder=holder, fence__gt=fence).exists():
                raise _taken(target)
            if present := UnwrapGrant.objects.select_for_update().filter(target=target, revoked_at=None).first():
                if _same(present, wanted):
                    return _extend(actor, present, lease)
                _make_way(actor, present, holder)
            now = database_time()
            made = UnwrapGrant.objects.create(
                target=target, reason=reason, granted_by=str(actor)[:254], created=now, expires_at=now + lease, **wanted
            )
            record(actor=actor, verb="grant.open", object=made, organisation_id=organisation, after=_described(made))
            return made
    except IntegrityError:  # another one was opened at this moment
        raise _taken(target) from None


@transaction.atomic
def renew(actor: Any, grant: uuid.UUID, *, fence: int, lease: timedelta = LONGEST) -> UnwrapGrant:
    """Let a live grant end `lease` from now. Raises `GrantEnded`: one that has ended is never revived, a new one may be
    opened; and `GrantTaken` for another fence."""
    _check("renewed", lease)
    row = UnwrapGrant.objects.select_for_update().filter(pk=grant).first()
    if row is None or row.revoked_at or row.expires_at <= database_time():
        raise GrantEnded("The grant of this restore has ended. Nothing more is opened by it. Open another one.")
    if row.fence != fence:
        raise _taken(row.target)
    return _extend(actor, row, lease)


@transaction.atomic
def revoke(actor: Any, grant: uuid.UUID, *, reason: str) -> bool:
    """End a grant: when this returns, nothing more is opened by it. False where it was revoked before, or never was."""
    row = UnwrapGrant.objects.select_for_update().filter(pk=grant, revoked_at=None).first()
    if row is None:
        return False
    _end(actor, row, reason)
    return True


def keep(actor: Any, grant: uuid.UUID | None, *, fence: int, lease: timedelta = LONGEST) -> UnwrapGrant | None:
    """Return a grant, renewed where less than half of `lease` is left of it; None where it has ended, or never was.

    Call it as often as the work looks at itself. Raises `GrantTaken` where it is to be renewed, and another has it.
    """
    row = UnwrapGrant.objects.filter(pk=grant, revoked_at=None).first() if grant else None
    if row is None or row.expires_at - database_time() > lease / 2:
        return row
    try:
        return renew(actor, row.pk, fence=fence, lease=lease)
    except GrantEnded:
        return None


@transaction.atomic
def revoke_held(actor: Any, holder: uuid.UUID, *, reason: str) -> int:
    """End every grant of a holder, also one that it has not written down; return how many."""
    held = UnwrapGrant.objects.filter(holder=holder, revoked_at=None).values_list("pk", flat=True)
    return sum(revoke(actor, each, reason=reason) for each in list(held))


def owner_of(server: uuid.UUID) -> uuid.UUID | None:
    """Return the organisation of a server that is there; None where nobody knows it, or two differ."""
    found = {owner for ask in seams.owner_of_server if (owner := ask(server)) is not None}
    return found.pop() if len(found) == 1 else None


def forget_old(age: timedelta = timedelta(days=90)) -> int:
    """Remove grants that ended long ago: the trail has them. Return how many."""
    old = UnwrapGrant.objects.filter(created__lt=Now() - age, expires_at__lt=Now())
    return old.delete()[0]


def _check(reason: str, lease: timedelta) -> None:
    if not timedelta(0) < lease <= LONGEST:
        raise Malformed(f"A grant lasts at most {LONGEST}, not {lease}. Renew it instead. Nothing was granted.")
    if not reason.strip() or len(reason) > 200:
        raise Malformed("A grant needs a reason of at most 200 characters. Nothing was granted.")


def _same(row: UnwrapGrant, wanted: dict[str, Any]) -> bool:
    return row.expires_at > database_time() and all(getattr(row, name) == value for name, value in wanted.items())


def _make_way(actor: Any, row: UnwrapGrant, holder: uuid.UUID) -> None:
    """End the grant that is there, where it has expired or is this holder's own; refuse otherwise."""
    if row.expires_at <= database_time():
        _end(SYSTEM, row, "expired")
    elif row.holder == holder:
        _end(actor, row, "replaced by its holder")
    else:
        raise _taken(row.target)


def _extend(actor: Any, row: UnwrapGrant, lease: timedelta) -> UnwrapGrant:
    before = {"expires_at": row.expires_at.isoformat()}
    row.expires_at = database_time() + lease
    row.save(update_fields=["expires_at"])
    after = {"expires_at": row.expires_at.isoformat()}
    record(actor=actor, verb="grant.renew", object=row, organisation_id=row.organisation, before=before, after=after)
    return row


def _end(actor: Any, row: UnwrapGrant, reason: str) -> None:
    row.revoked_at, row.revoked_because = database_time(), reason[:200]
    row.save(update_fields=["revoked_at", "revoked_because"])
    after = {"because": row.revoked_because, "opened": row.opened}
    record(actor=actor, verb="grant.revoke", object=row, organisation_id=row.organisation, after=after)


def _described(row: UnwrapGrant) -> dict[str, Any]:
    names = ("source", "target", "purpose", "holder", "fence", "reason")
    return {name: str(getattr(row, name)) for name in names} | {"expires_at": row.expires_at.isoformat()}


def _taken(target: uuid.UUID) -> GrantTaken:
    return GrantTaken(
        f"Another restore into the server {target} is going on, or took over. Nothing was granted. Wait until it ends."
    )
