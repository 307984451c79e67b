"""Hearth opens a server's part of a bucket with its own key, and removes a deleted server's last backup from it."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.utils import timezone

from audit.services import SYSTEM
from backups import expiring, places
from backups.engine import names
from backups.engine.stores.base import StoreError
from backups.models import RestorePoint, Shelf, Store
from tenants.models import Server
from tests.backups.s3_servers import S3Server

pytestmark = pytest.mark.django_db
POINT = "20261120t000000z-00000000"


@pytest.fixture
def bucket(s3_server: S3Server) -> Store:
    """A bucket of a real S3 server."""
    where = s3_server.new_prefix()
    keys = where.credentials
    assert keys is not None
    return Store.objects.create(
        code="eu", name="Bucket", kind=Store.Kind.S3, endpoint=where.endpoint, bucket=where.bucket,
        location=where.region, access_key=keys.key_id, secret_key=keys.secret,
    )  # fmt: skip


def test_each_server_has_a_part_of_its_own(bucket: Store, server: Server) -> None:
    with places.opened(bucket, server.pk) as store:
        store.put("media/one", [b"sealed"])
        assert [each.name for each in store.listing()] == ["media/one"]
    with places.opened(bucket, bucket.pk) as other:
        assert list(other.listing()) == []


def test_a_check_says_what_there_is(bucket: Store) -> None:
    found = places.check(SYSTEM, store=bucket)
    assert found.fault == ""
    assert {"versions", "object lock", "write-once names"} <= {each["what"] for each in found.findings}
    bucket.secret_key = "wrong"
    bucket.save()
    assert "credentials" in places.check(SYSTEM, store=bucket).fault


def test_a_deleted_servers_part_is_emptied(bucket: Store, server: Server) -> None:
    shelf = Shelf.objects.create(server=server, store=bucket, next_turn=timezone.now())
    RestorePoint.objects.create(server=server, identity=POINT, at=timezone.now(), kind="final", line=POINT)
    with places.opened(bucket, server.pk) as store:
        for name in (names.point(POINT), names.base(POINT), "media/one"):
            store.put(name, [b"sealed"])
    Server.objects.update(deleted=timezone.now() - timedelta(days=31))
    expiring.run(shelf.pk)
    with places.opened(bucket, server.pk) as store:
        assert list(store.listing()) == []
    shelf.refresh_from_db()
    assert (shelf.next_turn, shelf.fault) == (None, "")
    assert RestorePoint.objects.get().state == "gone"


def test_a_bucket_that_is_away_is_a_fault(bucket: Store, server: Server) -> None:
    Store.objects.update(bucket="no-such-bucket-here")
    shelf = Shelf.objects.create(server=server, store=bucket, next_turn=timezone.now())
    expiring.run(shelf.pk)
    shelf.refresh_from_db()
    assert "not there" in shelf.fault
    with pytest.raises(StoreError), places.opened(Store.objects.get(), server.pk) as store:
        list(store.listing())
