"""Regions, and the provider that runs each of them."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

from django.conf import settings
from django.db import transaction

from provisioning import clusters, networks
from provisioning.models import Cluster, Region
from provisioning.providers.base import Provider
from provisioning.providers.local.paths import agent_socket
from provisioning.providers.local.provider import LocalProvider
from tenants.errors import Refused
from tenants.models import Domain, Server
from tenants.seams import RegionChoice

LOCAL = "local"
CELL = 5000
"""Servers that one region holds at most: it is the size that one operator is measured with."""


@lru_cache(maxsize=1)
def local_provider() -> Provider:
    """Return the provider that talks to this machine's agent."""
    return LocalProvider(agent_socket(settings.STATE))


MAKERS: dict[str, Callable[[], Provider]] = {Region.Provider.LOCAL: local_provider}


def provider_for(region: Region) -> Provider:
    """Return the provider of `region`, or raise `ProviderError` where there is no way to it."""
    if region.provider == Region.Provider.KUBERNETES:
        return clusters.provider_of(region)
    return MAKERS[region.provider]()


def brings_back(region: Region) -> bool:
    """Tell whether servers here can be brought back from their backups. Of a cluster's regions those whose servers have

    databases of their own, media on volumes and no networks of their own; its provider refuses the others in detail.
    """
    if region.provider != Region.Provider.KUBERNETES:
        return True
    rows = Cluster.objects.filter(region=region, database_host="", s3_bucket="", network_range="")
    return rows.exclude(backup_image="").exclude(backup_issuer="").exists()


def tests_recovery(region: Region) -> bool:
    """Tell whether recovery tests take place here: in a cluster none was ever seen to its end (docs/limits.md)."""
    return region.provider != Region.Provider.KUBERNETES


def exports(region: Region) -> bool:
    """Tell whether the provider here can give a backup out in open formats (`Recovery.export`)."""
    return region.provider == Region.Provider.LOCAL


@transaction.atomic
def seed_region() -> Region:
    """Make the region of this machine, or bring its base domain up to date. Safe to call at each start."""
    region, made = Region.objects.get_or_create(
        code=LOCAL,
        defaults={
            "name": "This machine",
            "provider": Region.Provider.LOCAL,
            "base_domain": settings.HEARTH["HEARTH_BASE_DOMAIN"],
        },
    )
    if not made and region.base_domain != settings.HEARTH["HEARTH_BASE_DOMAIN"]:
        region.base_domain = settings.HEARTH["HEARTH_BASE_DOMAIN"]
        region.save(update_fields=["base_domain"])
    return region


def open_regions() -> list[RegionChoice]:
    """Say where new servers can be put; `tenants` asks through its seam."""
    rows = Region.objects.filter(open=True).order_by("code")
    return [RegionChoice(code=row.code, name=row.name, base_domain=row.base_domain) for row in rows]


def take_place(code: str) -> None:
    """Refuse when the region has no room for one more server. Call it inside the transaction that makes the server.

    Placements of one region take turns by its row, so that many at once can't overshoot.
    """
    region = Region.objects.select_for_update().filter(code=code).first()
    if region is None:
        return  # somebody else's, who said that it is open
    if not region.open:
        raise Refused("That region takes no new servers. No server was made. Choose another.", field="region")
    most = room(region)
    if Server.objects.filter(region=code, deleted__isnull=True).count() >= most:
        raise Refused(
            f"The region “{region.name}” is full: it holds {most:,} servers. No server was made. Choose another "
            "region.",
            field="region",
        )


def room(region: Region) -> int:
    """Return how many servers the region holds at most: a cell, or as many as it has networks for."""
    ranges = Cluster.objects.filter(region=region).values_list("network_range", "network_prefix").first()
    return min(CELL, networks.pieces(*ranges)) if ranges and ranges[0] else CELL


def may_federate(server: Server) -> bool:
    """Tell whether the name is under a region's base domain, or under a domain that its organisation has proved."""
    parts = server.server_name.split(":")[0].lower().split(".")
    parents = [".".join(parts[start:]) for start in range(len(parts))]
    if Region.objects.filter(base_domain__in=parents[1:]).exists():
        return True
    return Domain.objects.filter(organisation=server.organisation_id, name__in=parents, proved__isnull=False).exists()
