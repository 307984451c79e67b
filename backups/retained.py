"""How long the backups of an organisation need its keys."""

from __future__ import annotations

import uuid
from datetime import datetime

from django.db.models import Max

from backups.models import RestorePoint


def keep_keys_until(owner: uuid.UUID) -> datetime | None:
    """Tell the keyring until when the last restore point of `owner` is kept (a seam); None where there is none.

    Points of deleted servers count, the final backup among them: without the keys none of them can be opened.
    """
    points = RestorePoint.objects.filter(server__organisation_id=owner).exclude(state=RestorePoint.State.GONE)
    found: datetime | None = points.aggregate(last=Max("keep_until"))["last"]
    return found
