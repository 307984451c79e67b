"""The lease by which a restore opens data keys: short, renewed while the restore runs, revoked when it ends."""

from __future__ import annotations

import uuid
from datetime import timedelta

from audit.services import SYSTEM
from backups.models import Restore
from backups.proofs import ends
from provisioning.models import Operation
from provisioning.providers.base import ProviderError
from provisioning.steps import Context, NotYet
from security.datakeys import grants
from security.datakeys.errors import DataKeyRefused, GrantTaken
from security.models import UnwrapGrant

LEASE = timedelta(minutes=20)
"""So long a restore whose worker died goes on, and no longer."""


def keep(context: Context, row: Restore) -> uuid.UUID:
    """Return a restore's live grant; another one than before if that has ended. Raises `NotYet`, `ProviderError`."""
    try:
        kept = grants.keep(SYSTEM, row.grant, fence=row.grant_fence, lease=LEASE)
        return kept.pk if kept else _opened(context, row)
    except GrantTaken:
        context.note("Something else reads the backups of this server. This restore begins when that has ended.")
        raise NotYet from None
    except DataKeyRefused as refusal:
        raise ProviderError(str(refusal), code="KeysRefused", retry=refusal.status >= 500) from None


def revoke(operation: Operation) -> None:
    """End every grant that an operation holds. Call it in the transaction in which the operation ends."""
    grants.revoke_held(SYSTEM, operation.pk, reason=f"the restore ended: {operation.state}")


def revoke_left() -> int:
    """End grants whose operation has ended, however that came; return how many."""
    live = UnwrapGrant.objects.filter(purpose=UnwrapGrant.Purpose.RESTORE, revoked_at=None).values_list(
        "holder", flat=True
    )
    over = Operation.objects.filter(pk__in=list(live)).exclude(state__in=Operation.OPEN)
    for operation in over:
        revoke(operation)
    return len(over)


def _opened(context: Context, row: Restore) -> uuid.UUID:
    server = context.server
    ends.give_way(server.pk, "a restore that somebody asked for comes first")
    with context.transaction():
        return grants.open_grant(
            SYSTEM,
            organisation=server.organisation_id,
            source=row.source_id,
            target=server.pk,
            purpose=UnwrapGrant.Purpose.RESTORE,
            holder=context.operation.pk,
            fence=context.fence,
            reason=f"Restore asked for by {row.asked_by}"[:200],
            lease=LEASE,
        ).pk
