"""What a new installation of one machine backs up to."""

from __future__ import annotations

from django.conf import settings
from django.db import transaction

from backups.models import Policy, RegionStores, Store
from provisioning.models import Region

LOCAL = "local"


@transaction.atomic
def seed_backups() -> None:
    """Give this machine's region a store, and everybody a policy, unless there is one. Safe to call at each start."""
    Policy.objects.get_or_create(plan=None, server=None)
    region = Region.objects.filter(code=LOCAL).first()
    if region is None or RegionStores.objects.filter(region=region).exists():
        return
    folder = settings.STATE / "backups"
    store, _ = Store.objects.get_or_create(
        code=LOCAL, defaults={"name": "This machine", "kind": Store.Kind.FOLDER, "folder": str(folder)}
    )
    RegionStores.objects.get_or_create(region=region, defaults={"first": store})
