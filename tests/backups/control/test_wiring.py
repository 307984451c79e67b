"""What a server's engine is told."""

from __future__ import annotations

import base64
from pathlib import Path

import msgspec
import pytest
from django.conf import settings

from backups import wiring
from backups.engine.settings import FolderStoreAt, Part, Policy, S3StoreAt
from backups.models import RegionStores, ServerBackups, Store
from backups.seeds import seed_backups
from provisioning import fleet, seams
from tenants.models import Server

pytestmark = pytest.mark.django_db


class Told(Part, frozen=True, kw_only=True):
    """The part of the engine's settings that Hearth decides."""

    organisation: str
    synapse_version: str
    name_key_file: str
    policy: Policy
    store: FolderStoreAt | S3StoreAt


def test_a_region_without_a_store_backs_nothing_up(server: Server) -> None:
    assert seams.backup_of(server) == {}
    assert not ServerBackups.objects.exists()


def test_a_server_of_this_machine_has_a_folder_of_its_own_and_a_name_key_that_stays(server: Server) -> None:
    fleet.seed_region()
    seed_backups()
    seed_backups()
    first, again = seams.backup_of(server), seams.backup_of(server)
    assert first == again
    assert first["module"] == wiring.MODULE
    assert len(base64.b64decode(first["files"][wiring.NAME_KEY])) == wiring.NAME_KEY_BYTES
    told = msgspec.convert(first["settings"], Told)
    assert told.store == FolderStoreAt(path=f"{settings.STATE}/backups/{server.pk}", name="local", make=True)
    assert told.policy.base_every == 24 * 3600
    row = ServerBackups.objects.get()
    assert row.next_base is not None
    assert str(row.name_key) == first["files"][wiring.NAME_KEY]


def test_a_disk_that_is_not_mounted_is_not_made(server: Server, tmp_path: Path) -> None:
    region = fleet.seed_region()
    folder = tmp_path / "disk"
    store = Store.objects.create(code="disk", name="Disk", kind=Store.Kind.FOLDER, folder=str(folder))
    RegionStores.objects.create(region=region, first=store)
    assert seams.backup_of(server)["settings"]["store"]["make"] is False
    folder.mkdir()
    assert seams.backup_of(server)["settings"]["store"]["make"] is True


def test_a_buckets_key_is_a_file_and_is_the_agents(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    region = fleet.seed_region()
    store = Store.objects.create(
        code="eu", name="Bucket", kind=Store.Kind.S3, endpoint="https://s3.test", bucket="b", location="eu-1",
        access_key="hearth", secret_key="may-remove", agent_access_key="agent", agent_secret_key="may-write",
    )  # fmt: skip
    RegionStores.objects.create(region=region, first=store)
    found = seams.backup_of(server)
    told = msgspec.convert(found["settings"], Told)
    assert isinstance(told.store, S3StoreAt)
    assert (told.store.bucket, told.store.prefix, told.store.region) == ("b", str(server.pk), "eu-1")
    keys = base64.b64decode(found["files"][told.store.credentials_file])
    assert b"may-write" in keys
    assert b"may-remove" not in keys + str(found).encode()
    assert told.policy.sync_every == settings.HEARTH["HEARTH_BACKUP_REPORT_SECONDS"]
    monkeypatch.setitem(settings.HEARTH, "HEARTH_BACKUP_REPORT_SECONDS", 7)
    assert seams.backup_of(server)["settings"]["policy"]["sync_every"] == 7
