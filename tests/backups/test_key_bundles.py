"""Key bundles in buckets: published, read back, restored from, and gone with all their versions."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from django.core.exceptions import ImproperlyConfigured
from pytest_django import Settings

from audit.services import SYSTEM
from backups import key_bundles
from backups.engine.stores import buckets
from backups.engine.stores.connection import Bucket
from backups.engine.stores.folder import FolderStore
from backups.engine.stores.s3 import S3Store
from backups.key_bundles import StorePlace
from config.env import read
from security.errors import NotPublished
from security.keyring import publish, recovery
from security.keyring.places import FolderPlace, PlaceError
from security.keyring.seams import seams
from tests.backups.s3_faults import S3Faults
from tests.backups.s3_servers import S3Server, open_store
from tests.security.places import lose, make, opens

pytestmark = [pytest.mark.django_db, pytest.mark.xdist_group("s3")]
NAME = "20261101T120000Z-delta-0b1c.hkb"


@pytest.fixture(params=["minio", "plain_s3"])
def where(request: pytest.FixtureRequest) -> Bucket:
    server: S3Server = request.getfixturevalue(request.param)
    return server.new_prefix()


@pytest.fixture
def store(where: Bucket) -> Iterator[S3Store]:
    opened = open_store(where)
    yield opened
    opened.close()


@pytest.fixture
def place(store: S3Store) -> StorePlace:
    return StorePlace(store)


def test_it_works(place: StorePlace) -> None:
    place.put(NAME, b"bundle")
    assert place.get(NAME) == b"bundle"
    assert place.list() == [NAME]
    place.put(NAME, b"bundle")
    with pytest.raises(PlaceError, match="another key bundle"):
        place.put(NAME, b"other")
    assert place.get(NAME) == b"bundle"
    place.remove(NAME)
    place.remove(NAME)
    assert place.list() == []
    with pytest.raises(PlaceError, match="is not in the store"):
        place.get(NAME)


def test_what_is_removed_leaves_no_version(minio: S3Server) -> None:
    """An erased organisation's wrapped key may not stay behind a delete marker."""
    store = open_store(minio.new_prefix())
    place = StorePlace(store)
    place.put(NAME, b"bundle")
    store.delete([NAME])
    place.put(NAME, b"again")
    place.remove(NAME)
    found = store._connection.call("list_object_versions", Prefix=store._connection.key(""))
    kept = [each["Key"] for each in [*found.get("Versions", ()), *found.get("DeleteMarkers", ())]]
    assert [key for key in kept if key.endswith(".hkb")] == []
    store.close()


def test_a_locked_bucket_says_that_it_keeps_them(minio: S3Server) -> None:
    where = minio.where("locked-bundles")
    buckets.prepare(where, "far", lock_days=1)
    place = StorePlace(open_store(where))
    place.put(NAME, b"bundle")
    with pytest.raises(PlaceError, match="locked for some time"):
        place.remove(NAME)
    assert place.get(NAME) == b"bundle"


def test_a_name_that_is_no_bundles(place: StorePlace) -> None:
    for name in ("x", "../x.hkb", ".hkb", "a/b.hkb"):
        for call in (lambda n=name: place.put(n, b""), lambda n=name: place.get(n), lambda n=name: place.remove(n)):
            with pytest.raises(PlaceError, match="no name of a key bundle"):
                call()
    place.store.put("other", [b"x"])
    assert place.list() == []


def test_a_store_that_is_away(where: Bucket) -> None:
    with S3Faults(where.endpoint) as proxy:
        place = StorePlace(open_store(where, endpoint=proxy.endpoint, tries=1))
        with proxy.rule(".", status=503):
            for call in (
                lambda: place.put(NAME, b"x"),
                lambda: place.get(NAME),
                place.list,
                lambda: place.remove(NAME),
            ):
                with pytest.raises(PlaceError, match=r"The store far .* trouble of its own.*[^.]$"):
                    call()
        place.put(NAME, b"x")
        assert place.get(NAME) == b"x"


def test_a_folder_store_is_a_place_too(tmp_path: Path) -> None:
    place = StorePlace(FolderStore("near", tmp_path, make=True))
    place.put(NAME, b"bundle")
    assert place.list() == [NAME]
    place.remove(NAME)
    assert place.list() == []


def test_a_keyring_comes_back_from_a_bucket_alone(
    minio: S3Server, tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = minio.new_prefix()
    configure(settings, where, tmp_path)
    assert [type(each) for each in publish.places()] == [FolderPlace, StorePlace]
    keys = make()
    publish.publish(keys)
    lose()
    monkeypatch.setattr(seams, "places", [key_bundles.places])
    assert recovery.from_places(SYSTEM, publish.places()).data_keys == 1
    assert opens(keys)


def test_no_key_is_published_while_a_bucket_is_away(minio: S3Server, tmp_path: Path, settings: Settings) -> None:
    where = minio.new_prefix()
    configure(settings, where, tmp_path, bucket="not-there")
    with pytest.raises(NotPublished, match=r"The store far \(bucket not-there\).*the bucket is not there"):
        publish.publish(make())


def configure(settings: Settings, where: Bucket, folder: Path, *, bucket: str = "") -> None:
    assert where.credentials
    known = {"access_key": where.credentials.key_id, "secret_key": where.credentials.secret}
    given = {
        "HEARTH_KEY_BUNDLES": f"near:{folder},far:{where.endpoint}/{bucket or where.bucket}/{where.prefix}",
        "HEARTH_KEY_BUNDLE_ACCESS": json.dumps({"far": known}),
    }
    found = read(given)
    settings.HEARTH = {**settings.HEARTH, **{name: found[name] for name in given}}


def test_where_the_settings_put_them(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    value = "near:/mnt/near,far:https://s3.example.org:9000/keys/region/one,aws:s3://keys"
    settings.HEARTH = {
        **settings.HEARTH,
        "HEARTH_KEY_BUNDLES": read({"HEARTH_KEY_BUNDLES": value})["HEARTH_KEY_BUNDLES"],
    }
    assert publish.folders() == [FolderPlace("near", Path("/mnt/near"))]
    buckets_there = [place.store for place in key_bundles.places() if isinstance(place, StorePlace)]
    found = [each._connection.where for each in buckets_there if isinstance(each, S3Store)]
    assert [(each.endpoint, each.bucket, each.prefix) for each in found] == [
        ("https://s3.example.org:9000", "keys", "region/one"),
        ("", "keys", ""),
    ]
    assert key_bundles.places()[0] is key_bundles.places()[0], "connections are kept"


WRONG = ["a:http://s3.example.org/keys", "a:https://s3.example.org", "a:https://me:pw@s3.example.org/keys", "a:s3://"]
WRONG += [
    "a:https://s3.example.org/keys/../x",
    "a:https://s3.example.org/keys,a:/x",
    "a:s3://k,b:s3://k",
    "a:ftp://x/y",
]
NO_ACCESS = ["secretword", "[]", '{"a": "secretword"}', '{"a": {"access_key": "secretword"}}']
NO_ACCESS += ['{"a": {"x": "secretword"}}', '{"a": {"region": 1}}']


@pytest.mark.parametrize("value", WRONG)
def test_settings_that_make_no_sense(value: str) -> None:
    with pytest.raises(ImproperlyConfigured, match="HEARTH_KEY_BUNDLES"):
        read({"HEARTH_KEY_BUNDLES": value})


@pytest.mark.parametrize("value", NO_ACCESS)
def test_access_that_makes_no_sense_is_never_shown(value: str) -> None:
    with pytest.raises(ImproperlyConfigured, match="HEARTH_KEY_BUNDLE_ACCESS") as caught:
        read({"HEARTH_KEY_BUNDLE_ACCESS": value})
    assert "secretword" not in str(caught.value)
