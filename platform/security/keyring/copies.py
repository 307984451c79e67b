"""Until when copies of an owner's key outlive it: in key bundles, and in copies of Hearth's own database.

A key in such a copy is wrapped by a root key; but whoever runs Hearth has that one, so an erasure waits for them.
"""

from __future__ import annotations

import uuid
from datetime import datetime, timedelta

from django.conf import settings
from django.db.models import Q

from security.keyring.publish import database_time
from security.keyring.recovery import MARGIN
from security.keyring.seams import latest, seams
from security.models import BundleFile, Erasure


def keep_until(owner: uuid.UUID) -> datetime | None:
    """Return until when an owner's keys must stay, or None where nothing needs them."""
    return latest([ask(owner) for ask in seams.keep_keys_until])


def in_bundles(owner: uuid.UUID) -> datetime | None:
    """Return until when a key bundle may still hold an owner's key; for the seam `copies_until`."""
    kept, now = timedelta(days=settings.HEARTH["HEARTH_KEY_BUNDLE_DAYS"]), database_time()
    erasure = Erasure.objects.filter(owner=owner).first()
    bundles = BundleFile.objects.order_by("-created")
    if erasure is None or erasure.destroyed is None:
        # Each day's bundle will hold it until it is destroyed.
        return _planned(owner, erasure, now) + kept if bundles.exists() else None
    # A bundle whose reading began just after it may have seen what was there just before.
    # One of a time that has not come is of a clock that was ahead: it may have seen it too.
    last = bundles.filter(Q(created__lte=erasure.destroyed + MARGIN) | Q(created__gt=now + MARGIN)).first()
    return max(min(last.created, now) + kept, now + timedelta(hours=1)) if last else None


def in_database_copies(owner: uuid.UUID) -> datetime | None:
    """Return until when a copy of Hearth's own database may still hold an owner's key; for the seam `copies_until`.

    Hearth does not see these copies. It believes HEARTH_DATABASE_COPIES_DAYS: the last copy with the key in it was made
    just before the destruction. At 0 there are none, and the answer is None.
    """
    kept = timedelta(days=settings.HEARTH["HEARTH_DATABASE_COPIES_DAYS"])
    if not kept:
        return None
    erasure = Erasure.objects.filter(owner=owner).first()
    end = erasure.destroyed if erasure and erasure.destroyed else _planned(owner, erasure, database_time())
    return end + kept


def _planned(owner: uuid.UUID, erasure: Erasure | None, now: datetime) -> datetime:
    """Return when keys that are there still will be destroyed, at the earliest; without a request: if it came now."""
    return latest([now, erasure.destroy_after if erasure else keep_until(owner)]) or now
