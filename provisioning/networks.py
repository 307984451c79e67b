"""A range of addresses for each server of a region that gives servers networks of their own."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from ipaddress import IPv4Network

from django.db.models import F, Min

from provisioning.models import Cluster, Network, Region
from provisioning.providers.base import ProviderError
from tenants.models import Server

Transaction = Callable[[], AbstractContextManager[object]]


def ensure(server: Server, transaction: Transaction) -> str:
    """Return the server's range; empty where its region gives none. One that is missing is taken in `transaction`.

    It stays with the server until everything of it is gone, whatever becomes of its region's settings.
    """
    found = Network.objects.filter(server=server).first()
    if found is None:
        cluster = Cluster.objects.filter(region__code=server.region).exclude(network_range="").first()
        if cluster is None:
            return ""
        with transaction():
            found = _take(server, cluster)
    return found.cidr


def _take(server: Server, cluster: Cluster) -> Network:
    # Those who take from one region take turns; another worker may have taken one for this server meanwhile.
    region = Region.objects.select_for_update().get(pk=cluster.region_id)
    if there := Network.objects.filter(server=server).first():
        return there
    number = _lowest_free(region)
    if number >= pieces(cluster.network_range, cluster.network_prefix):
        raise ProviderError(
            f"The region “{region.name}” has no range of addresses left for this server's network. Nothing was made. "
            "Ask support, or choose another region.",
            code="NetworksUsedUp",
            retry=False,
        )
    cidr = piece(cluster.network_range, cluster.network_prefix, number)
    return Network.objects.create(server=server, region=region, number=number, cidr=cidr)


def release(server: Server) -> None:
    """Give the server's range back. Call inside a fenced transaction, once nothing of the server is left."""
    Network.objects.filter(server=server).delete()


def pieces(whole: str, prefix: int) -> int:
    """Return how many servers a range has room for."""
    return 1 << max(0, prefix - IPv4Network(whole).prefixlen)


def piece(whole: str, prefix: int, number: int) -> str:
    """Return one piece of a range."""
    start = int(IPv4Network(whole).network_address) + (number << (32 - prefix))
    return str(IPv4Network((start, prefix)))


def _lowest_free(region: Region) -> int:
    taken = Network.objects.filter(region=region)
    if not taken.filter(number=0).exists():
        return 0
    free = taken.annotate(after=F("number") + 1).exclude(after__in=taken.values("number"))
    return int(free.aggregate(lowest=Min("after"))["lowest"])
