"""A range of addresses for each server's own network: no two overlap, whoever asks at once, and it comes back."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from ipaddress import IPv4Network
from itertools import combinations

import pytest
from django.db import IntegrityError, connection, transaction

from accounts.models import User
from provisioning import clusters, fleet, networks
from provisioning.models import Cluster, Network, Region
from provisioning.providers.base import ProviderError
from tenants.errors import Refused
from tenants.models import Organisation, Server
from tenants.releases import newest
from tenants.services import create_server
from tests.cluster.api import Api
from tests.operator.process import Operator
from tests.provisioning.kubernetes.conftest import BASE
from tests.provisioning.kubernetes.test_life import carry_out, spec

pytestmark = pytest.mark.django_db(transaction=True)


def inside() -> AbstractContextManager[object]:
    return transaction.atomic()


@pytest.fixture
def networked(alice: User) -> Cluster:
    """A region with room for eight networks."""
    made = clusters.create(
        actor=alice, code="cell", name="The cell", base_domain=BASE, kubeconfig=None, route="http://{namespace}",
        synapse_image="i:{version}", postgres_image="p", ingress_class="x", network_range="10.64.0.0/21",
        network_prefix=24,
    )  # fmt: skip
    Region.objects.update(open=True)
    return made


def test_many_at_once_never_overlap(networked: Cluster, make_server: Callable[..., Server]) -> None:
    servers = [make_server(region="cell") for _ in range(8)]
    barrier = threading.Barrier(16)

    def take(server: Server) -> None:
        try:
            barrier.wait(60)
            networks.ensure(server, inside)
        finally:
            connection.close()

    # Two workers for each server, as when one has lost its lease.
    threads = [threading.Thread(target=take, args=[each]) for each in servers * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    taken = [IPv4Network(cidr) for cidr in Network.objects.values_list("cidr", flat=True)]
    assert len(taken) == 8
    assert not [pair for pair in combinations(taken, 2) if pair[0].overlaps(pair[1])]
    assert all(each.subnet_of(IPv4Network("10.64.0.0/21")) for each in taken)
    with pytest.raises(ProviderError, match="no range of addresses left") as caught:
        networks.ensure(make_server(region="cell"), inside)
    assert caught.value.code == "NetworksUsedUp"


def test_what_is_given_back_is_given_again(networked: Cluster, make_server: Callable[..., Server]) -> None:
    servers = [make_server(region="cell") for _ in range(4)]
    ranges = [networks.ensure(each, inside) for each in servers]
    assert ranges == ["10.64.0.0/24", "10.64.1.0/24", "10.64.2.0/24", "10.64.3.0/24"]
    assert networks.ensure(servers[2], inside) == ranges[2], "a server keeps its own"
    for number in (0, 2):
        networks.release(servers[number])
    assert [networks.ensure(make_server(region="cell"), inside) for _ in range(3)] == [
        ranges[0], ranges[2], "10.64.4.0/24"
    ]  # fmt: skip


def test_the_database_holds_it_too(networked: Cluster, make_server: Callable[..., Server]) -> None:
    one, two = make_server(region="cell"), make_server(region="cell")
    networks.ensure(one, inside)
    for row in ({"number": 0, "cidr": "10.64.9.0/24"}, {"number": 9, "cidr": "10.64.0.0/24"}):
        with pytest.raises(IntegrityError), transaction.atomic():
            Network.objects.create(server=two, region=networked.region, **row)


def test_other_regions_have_none(make_server: Callable[..., Server]) -> None:
    fleet.seed_region()
    assert networks.ensure(make_server(), inside) == ""
    assert not Network.objects.exists()


def test_a_region_takes_no_more_servers_than_it_has_networks_for(
    networked: Cluster, alice: User, organisation: Organisation, make_server: Callable[..., Server]
) -> None:
    for _ in range(8):
        make_server(region="cell")
    with pytest.raises(Refused, match="is full: it holds 8 servers"):
        create_server(actor=alice, organisation=organisation, name="more", region="cell")


def test_the_range_stays_while_servers_are_there(networked: Cluster, make_server: Callable[..., Server]) -> None:
    make_server(region="cell")
    for change in ({"network_range": "10.80.0.0/16"}, {"network_prefix": 25}, {"network_range": ""}):
        with pytest.raises(Refused, match="their data lies there"):
            clusters.change(actor="staff", cluster=networked, **change)


def test_no_server_comes_while_staff_look_for_servers(
    networked: Cluster, alice: User, organisation: Organisation
) -> None:
    """A placement that is not yet committed is waited for, and then refuses the change."""
    placed, refused = threading.Event(), []

    def change() -> None:
        try:
            assert placed.wait(60)
            clusters.change(actor="staff", cluster=networked, network_prefix=25)
        except Refused as refusal:
            refused.append(refusal.field)
        finally:
            connection.close()

    thread = threading.Thread(target=change)
    with transaction.atomic():
        create_server(actor=alice, organisation=organisation, name="more", region="cell")
        thread.start()
        placed.set()
        thread.join(1)
        assert thread.is_alive(), "it waits"
    thread.join()
    assert refused == ["network_prefix"]


@pytest.mark.parametrize("wrong", ["10.64.0.0", "10.64.0.1/12", "8.8.0.0/16", "10.64.0.0/25", "fd00::/64", "x"])
def test_a_range_that_makes_no_sense(networked: Cluster, wrong: str) -> None:
    with pytest.raises(Refused, match="Nothing was changed") as caught:
        clusters.change(actor="staff", cluster=networked, network_range=wrong)
    assert caught.value.field == "network_range"


@pytest.mark.xdist_group("cluster")
def test_the_cluster_is_told_and_it_comes_back(
    make_region: Callable[..., Cluster], make_server: Callable[..., Server], api: Api, operator: Operator
) -> None:
    region = make_region(network_range="10.96.0.0/16", network_prefix=26).region
    server = make_server("fig", region=region.code, server_name=f"fig.{BASE}", version=newest().version)
    carry_out(server)
    namespace = f"hearth-{server.pk}"
    assert spec(api, server)["network"]["vpc"] == {"name": namespace, "cidr": "10.96.0.0/26"}
    subnet = api.get("kubeovn.io/v1", "Subnet", namespace)
    assert subnet is not None
    assert subnet["spec"]["cidrBlock"] == "10.96.0.0/26"
    carry_out(server, users=7)
    assert spec(api, server)["network"]["vpc"]["cidr"] == "10.96.0.0/26"
    carry_out(server, desired="deleted")
    assert not Network.objects.exists()
