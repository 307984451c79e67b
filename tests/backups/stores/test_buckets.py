"""Buckets are made with every protection that the server has; what it lacks is told; an agent can't undo anything."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from backups.engine.stores import buckets
from backups.engine.stores.base import ObjectExists, StoreError
from backups.engine.stores.connection import Bucket, Connection
from backups.engine.stores.s3 import S3Store
from tests.backups.minio_admin import new_user
from tests.backups.s3_servers import S3Server, open_store
from tests.backups.stores.contract import MIB, names, noise, read

pytestmark = pytest.mark.xdist_group("s3")

OWN, OTHER = "region/own", "region/other"


def states(store: S3Store) -> dict[str, str]:
    return {each.what: each.state for each in store.check()}


def test_minio_has_nearly_everything(minio: S3Server) -> None:
    where = minio.where("with-lock", prefix="a")
    found = {each.what: each for each in buckets.prepare(where, "far")}
    assert {what: each.state for what, each in found.items()} == {
        "versions": "on",
        "lifecycle": "on",
        "unfinished uploads": "unsupported",
        "object lock": "on",
        "encryption at rest": "on",
        "no public access": "on",
    }
    assert "30 days" in found["lifecycle"].text
    assert "30 days (governance)" in found["object lock"].text
    assert "MinIO: a day" in found["unfinished uploads"].text
    store = open_store(where)
    assert states(store)["write-once names"] == "on"
    again = {each.what: each for each in buckets.prepare(where, "far")}
    assert again == found, "it can be prepared again and again"
    store.close()


def test_a_server_that_has_nothing(plain_s3: S3Server) -> None:
    where = plain_s3.where("prepared", prefix="a")
    buckets.prepare(where, "far")
    store = open_store(where)
    assert states(store) == {
        "versions": "off",
        "lifecycle": "off",
        "unfinished uploads": "off",
        "object lock": "off",
        "encryption at rest": "off",
        "no public access": "on",
        "write-once names": "unsupported",
    }
    assert all(each.text for each in store.check())
    store.close()


def test_a_bucket_without_protection(minio: S3Server) -> None:
    where = minio.where("bare")
    Connection(where, "raw").call("create_bucket")
    found = states(open_store(where))
    assert found["versions"] == found["lifecycle"] == found["object lock"] == found["encryption at rest"] == "off"


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        ({"NoncurrentVersionExpiration": {"NoncurrentDays": 3}}, "after 3 days"),
        ({"Expiration": {"Days": 60}}, "deletes backups"),
    ],
)
def test_lifecycle_rules_that_do_harm(minio: S3Server, rule: dict[str, object], text: str) -> None:
    where = minio.new_bucket()
    whole = {"ID": "theirs", "Status": "Enabled", "Filter": {"Prefix": ""}, **rule}
    Connection(where, "raw").call("put_bucket_lifecycle_configuration", LifecycleConfiguration={"Rules": [whole]})
    found = {each.what: each for each in open_store(where, prefix="region").check()}["lifecycle"]
    assert found.state == "off"
    assert text in found.text


def test_a_bucket_that_anybody_reads(minio: S3Server) -> None:
    where = minio.new_bucket()
    policy = (
        '{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":{"AWS":["*"]},'
        f'"Action":["s3:GetObject"],"Resource":["arn:aws:s3:::{where.bucket}/*"]}}]}}'
    )
    Connection(where, "raw").call("put_bucket_policy", Policy=policy)
    found = {each.what: each for each in open_store(where).check()}["no public access"]
    assert (found.state, "Anybody can read" in found.text) == ("off", True)


def test_a_bucket_of_somebody_else(minio: S3Server) -> None:
    """A key that may see nothing of it."""
    where = minio.new_bucket()
    stranger = replace(where, credentials=new_user(minio, buckets.agent_policy("another", OWN)))
    with pytest.raises(StoreError) as caught:
        buckets.prepare(stranger, "far")
    assert caught.value.code == "StoreDenied"


@pytest.fixture(scope="module")
def bucket(minio: S3Server) -> Bucket:
    return minio.new_bucket()


@pytest.fixture(scope="module")
def known(minio: S3Server, bucket: Bucket) -> Bucket:
    """The bucket as an agent of `OWN` goes there."""
    return replace(bucket, credentials=new_user(minio, buckets.agent_policy(bucket.bucket, OWN)))


@pytest.fixture
def agent(known: Bucket) -> Iterator[S3Store]:
    opened = open_store(known, prefix=OWN)
    yield opened
    opened.close()


@pytest.fixture
def hearth(bucket: Bucket) -> Iterator[S3Store]:
    opened = open_store(bucket, prefix=OWN)
    yield opened
    opened.delete(names(opened))
    opened.close()


@pytest.mark.parametrize("size", [100, 20 * MIB])
def test_an_agent_puts_reads_and_lists(agent: S3Store, hearth: S3Store, size: int) -> None:
    stored = agent.put("wal/1", [noise(size)])
    assert read(agent, "wal/1") == noise(size)
    assert agent.head("wal/1").mark == stored.mark
    assert names(agent) == names(hearth) == ["wal/1"]
    with pytest.raises(ObjectExists):
        agent.put("wal/1", [noise(size)])


def test_an_agent_whose_put_fails_leaves_nothing(agent: S3Store, hearth: S3Store, bucket: Bucket) -> None:
    def pieces() -> Iterator[bytes]:
        yield noise(20 * MIB)
        raise OSError("the caller's own")

    with pytest.raises(OSError, match="own"):
        agent.put("wal/1", pieces())
    assert names(hearth) == []
    answer = Connection(bucket, "raw").call("list_multipart_uploads", Prefix=f"{OWN}/wal/1")
    assert not answer.get("Uploads")


def test_an_agent_deletes_nothing(agent: S3Store, hearth: S3Store) -> None:
    agent.put("wal/1", [b"x"])
    with pytest.raises(StoreError) as caught:
        agent.delete(["wal/1"])
    assert (caught.value.code, caught.value.retry) == ("StoreDenied", False)
    assert read(hearth, "wal/1") == b"x"


@pytest.mark.parametrize(
    ("operation", "parameters"),
    [
        ("delete_object", {}),
        ("delete_object", {"VersionId": True}),
        ("put_bucket_versioning", {"VersioningConfiguration": {"Status": "Suspended"}}),
        ("delete_bucket_lifecycle", {}),
        ("delete_bucket_encryption", {}),
        ("put_bucket_policy", {"Policy": '{"Version":"2012-10-17","Statement":[]}'}),
        ("delete_bucket", {}),
        ("put_bucket_lifecycle_configuration", {"LifecycleConfiguration": {"Rules": []}}),
    ],
)
def test_an_agent_can_not_undo_protection(
    known: Bucket, agent: S3Store, hearth: S3Store, operation: str, parameters: dict[str, object]
) -> None:
    agent.put("wal/1", [b"kept"])
    raw, options = Connection(replace(known, prefix=OWN), "raw"), dict(parameters)
    if "VersionId" in options:
        owner = hearth._connection.call("list_object_versions", Prefix=f"{OWN}/wal/1")
        options["VersionId"] = owner["Versions"][0]["VersionId"]
    if operation == "delete_object":
        options["name"] = "wal/1"
    if operation == "put_bucket_lifecycle_configuration":
        rule = {"ID": "x", "Status": "Enabled", "Filter": {"Prefix": ""}, "Expiration": {"Days": 1}}
        options = {"LifecycleConfiguration": {"Rules": [rule]}}
    with pytest.raises(StoreError) as caught:
        raw.call(operation, **options)  # type: ignore[arg-type]  # whatever the operation takes
    assert caught.value.code == "StoreDenied"
    assert read(hearth, "wal/1") == b"kept"


def test_an_agent_sees_nothing_of_others(known: Bucket, bucket: Bucket) -> None:
    others = open_store(bucket, prefix=OTHER)
    others.put("wal/1", [b"theirs"])
    stranger = open_store(known, prefix=OTHER)
    above = open_store(known, prefix="")
    calls = (
        lambda: read(stranger, "wal/1"),
        lambda: stranger.head("wal/1"),
        lambda: names(stranger),
        lambda: stranger.put("wal/2", [b"x"]),
        lambda: stranger.put("wal/2", [noise(20 * MIB)]),
        lambda: names(above),
        lambda: names(above, "region/"),
        lambda: stranger.delete(["wal/1"]),
        above.sweep,
    )
    for call in calls:
        with pytest.raises(StoreError) as caught:
            call()
        assert caught.value.code == "StoreDenied"
    assert names(others) == ["wal/1"]
    others.delete(["wal/1"])
    for each in (others, stranger, above):
        each.close()


def test_what_an_agent_wrote_over_is_still_there(known: Bucket, agent: S3Store, hearth: S3Store) -> None:
    """Its key could be stolen and used by another program: then the older version can be read by Hearth's."""
    agent.put("wal/over", [b"right"])
    raw = Connection(replace(known, prefix=OWN), "raw")
    raw.call("put_object", name="wal/over", Body=b"wrong")
    assert read(hearth, "wal/over") == b"wrong"
    versions = hearth._connection.call("list_object_versions", Prefix=f"{OWN}/wal/over")["Versions"]
    [older] = [each["VersionId"] for each in versions if not each["IsLatest"]]
    answer = hearth._connection.call("get_object", name="wal/over", VersionId=older)
    assert answer["Body"].read() == b"right"


def test_what_was_deleted_stays_as_a_version(hearth: S3Store) -> None:
    hearth.put("wal/1", [b"x"])
    hearth.delete(["wal/1"])
    assert names(hearth) == []
    assert hearth._connection.call("list_object_versions", Prefix=f"{OWN}/wal/1")["Versions"]


def test_an_agents_check_says_what_it_may_not_ask(agent: S3Store) -> None:
    found = states(agent)
    assert found["versions"] == found["encryption at rest"] == "unknown"
    assert found["write-once names"] == "on"
