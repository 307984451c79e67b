"""Which stores a region in a cluster may have: what could never back a server up is refused, and says why."""

from __future__ import annotations

from typing import Any

import pytest
from django.conf import settings as hearth

from audit.services import SYSTEM
from backups import places
from backups.models import RegionStores, Store
from provisioning import fleet
from provisioning.models import Cluster, Region
from tenants.errors import Refused

pytestmark = pytest.mark.django_db

WHOLE = {"backup_image": "images.example/hearth-backup:1", "backup_issuer": "hearth-internal"}


def chosen(kind: str = "s3", provider: str = Region.Provider.KUBERNETES, **cluster: Any) -> RegionStores:
    region = Region.objects.create(code="cell", name="Cell", base_domain="cell.example", provider=provider)
    if provider == Region.Provider.KUBERNETES:
        columns = {"synapse_image": "s:{version}", "postgres_image": "p", "route": "http://{namespace}"}
        Cluster.objects.create(region=region, **columns, **cluster)
    place = {"folder": "/srv/backups"} if kind == "folder" else {"endpoint": "https://s3.example", "bucket": "backups"}
    store = Store.objects.create(code="first", name="First", kind=kind, **place)
    return RegionStores(region=region, first=store)


@pytest.fixture
def trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The internal listener's certificate comes from elsewhere."""
    monkeypatch.setitem(hearth.HEARTH, "HEARTH_INTERNAL_TRUST", "/etc/trust.pem")


@pytest.mark.parametrize(
    ("kind", "cluster", "said"),
    [
        ("folder", WHOLE, "no folder of this machine"),
        ("s3", {}, "neither image nor issuer"),
        ("s3", WHOLE | {"database_host": "db.example"}, "its own PostgreSQL"),
    ],
    ids=["a folder", "no image", "shared database"],
)
@pytest.mark.usefixtures("trusted")
def test_what_could_never_back_up_is_refused(kind: str, cluster: dict[str, str], said: str) -> None:
    with pytest.raises(Refused, match=said):
        places.choose_stores(SYSTEM, chosen=chosen(kind, **cluster))
    assert not RegionStores.objects.exists()


def test_engines_must_be_able_to_speak_to_hearth() -> None:
    with pytest.raises(Refused, match="HEARTH_INTERNAL_CERTIFICATE"):
        places.choose_stores(SYSTEM, chosen=chosen(**WHOLE))


@pytest.mark.usefixtures("trusted")
def test_a_whole_region_gets_its_bucket() -> None:
    places.choose_stores(SYSTEM, chosen=chosen(**WHOLE))
    assert RegionStores.objects.get().first.code == "first"


def test_a_region_on_this_machine_is_not_concerned() -> None:
    places.choose_stores(SYSTEM, chosen=chosen("folder", Region.Provider.LOCAL))
    assert RegionStores.objects.get().first.kind == "folder"


@pytest.mark.parametrize(
    ("cluster", "can"),
    [
        (WHOLE, True),
        ({}, False),
        (WHOLE | {"database_host": "db.example"}, False),
        (WHOLE | {"s3_bucket": "media"}, False),
        (WHOLE | {"network_range": "10.64.0.0/16"}, False),
    ],
    ids=["whole", "no image", "shared database", "media in a bucket", "networks"],
)
def test_which_clusters_bring_servers_back(cluster: dict[str, str], *, can: bool) -> None:
    region = chosen(**cluster).region
    assert fleet.brings_back(region) is can
    assert fleet.tests_recovery(region) is False
