"""Whether a region's servers can be backed up at all, and to which store: what a pod in a cluster reaches and needs."""

from __future__ import annotations

from django.conf import settings

from backups.models import RegionStores, Store
from provisioning.models import Cluster, Region
from tenants.errors import Refused


def refuse(chosen: RegionStores) -> None:
    """Raise `Refused` for a choice by which a cluster's servers could never be backed up."""
    if chosen.region.provider != Region.Provider.KUBERNETES:
        return
    if chosen.first.kind != Store.Kind.S3:
        text = "Servers of this region run in a cluster, from which no folder of this machine can be reached."
        raise Refused(f"{text} Nothing was changed. Choose a bucket.", field="first")
    cluster = Cluster.objects.filter(region=chosen.region).first()
    if cluster is None or not (cluster.backup_image and cluster.backup_issuer):
        text = "This region says neither image nor issuer of backup engines, so none can run there."
        raise Refused(f"{text} Nothing was changed. Complete the Kubernetes region first.", field="region")
    if cluster.database_host:
        text = "Databases of this region are in its own PostgreSQL, which gives nobody one server's write-ahead log."
        raise Refused(f"{text} Nothing was changed. Back that PostgreSQL up by its own means.", field="region")
    if not settings.HEARTH["HEARTH_INTERNAL_TRUST"]:
        text = "Hearth's internal listener trusts its own authority alone, so engines in a cluster can't speak to it."
        raise Refused(
            f"{text} Nothing was changed. Set HEARTH_INTERNAL_CERTIFICATE, _KEY and _TRUST (docs/kubernetes.md).",
            field="region",
        )
