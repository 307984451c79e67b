"""Who may go to a bucket, by which address, and that nobody sees a key or reads along."""

from __future__ import annotations

import os
import re
import ssl
import subprocess
import sys
import traceback
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import botocore.auth
import pytest

from backups.engine.stores.base import StoreError
from backups.engine.stores.connection import Bucket, Credentials
from backups.engine.stores.s3 import S3Store
from tests.backups.s3_faults import S3Faults
from tests.backups.s3_servers import S3Server, open_store
from tests.backups.stores.contract import MIB, names, noise, read
from tests.cluster.certificates import Authority

pytestmark = pytest.mark.xdist_group("s3")


@pytest.fixture
def store(where: Bucket, proxy: S3Faults) -> Iterator[S3Store]:
    """A store behind the proxy that gives up after two tries."""
    opened = open_store(where, endpoint=proxy.endpoint, tries=2)
    yield opened
    opened.close()


WHOLE, PARTS = 300_000, 20 * MIB + 3
PUT = r"PUT .*/wal/1(\?|$)"
PART_TWO = r"PUT .*partNumber=2"
COMPLETE = r"POST .*uploadId="
GET = r"GET .*/wal/1"


@pytest.mark.parametrize("server", ["minio", "plain_s3"], indirect=True)
@pytest.mark.parametrize("wrong", ["key", "secret"])
def test_wrong_credentials(where: Bucket, direct: S3Store, wrong: str) -> None:
    assert where.credentials
    direct.put("wal/1", [b"x"])
    change = {"key_id": "AKIAWRONGWRONGWRONG1"} if wrong == "key" else {"secret": "verysecretvalue" * 2}
    store = open_store(where, credentials=replace(where.credentials, **change))
    calls = (
        lambda: store.put("wal/2", [noise(WHOLE)]),
        lambda: store.put("wal/2", [noise(PARTS)]),
        lambda: read(store, "wal/1"),
        lambda: store.head("wal/1"),
        lambda: names(store),
        lambda: store.delete(["wal/1"]),
        store.check,
    )
    for call in calls:
        with pytest.raises(StoreError, match="refuses these credentials") as caught:
            call()
        assert (caught.value.code, caught.value.retry) == ("StoreDenied", False)
        told = "".join(traceback.format_exception(caught.value))
        assert "verysecret" not in told
        assert "AKIAWRONG" not in told
    assert read(direct, "wal/1") == b"x"
    store.close()


def test_no_credentials_at_all(where: Bucket, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    store = open_store(where, credentials=None)
    with pytest.raises(StoreError, match="no credentials") as caught:
        names(store)
    assert caught.value.code == "StoreDenied"
    store.close()


def test_credentials_of_the_environment(where: Bucket) -> None:
    assert where.credentials
    code = """
import sys
from backups.engine.stores.s3 import Bucket, S3Store
store = S3Store("far", Bucket(sys.argv[1], sys.argv[2], prefix=sys.argv[3]))
store.put("wal/1", [b"x"])
print([each.name for each in store.listing()])
"""
    environment = os.environ | {
        "PYTHONPATH": "platform:.",
        "AWS_ACCESS_KEY_ID": where.credentials.key_id,
        "AWS_SECRET_ACCESS_KEY": where.credentials.secret,
    }
    argv = [sys.executable, "-c", code, where.bucket, where.endpoint, where.prefix]
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "['wal/1']\n"


def test_nothing_shows_credentials(where: Bucket, direct: S3Store) -> None:
    assert where.credentials
    for shown in (repr(where), repr(direct), repr(direct._connection), repr(where.credentials), str(direct)):
        assert where.credentials.key_id not in shown
        assert where.credentials.secret not in shown


@pytest.mark.parametrize("server", ["minio", "plain_s3"], indirect=True)
def test_a_bucket_that_is_not_there(server: S3Server) -> None:
    store = open_store(server.where("not-there"))
    for call in (lambda: store.put("x", [b"x"]), lambda: store.put("x", [noise(PARTS)]), lambda: names(store)):
        with pytest.raises(StoreError, match="the bucket is not there") as caught:
            call()
        assert (caught.value.code, caught.value.retry) == ("StoreMissing", False)
    with pytest.raises(StoreError):
        read(store, "x")
    store.close()


def test_a_clock_that_is_wrong(where: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(where)
    wrong = datetime.now(UTC).replace(tzinfo=None) - timedelta(hours=2)
    monkeypatch.setattr(botocore.auth, "get_current_datetime", lambda **_: wrong)
    with pytest.raises(StoreError, match="clock") as caught:
        names(store)
    assert (caught.value.code, caught.value.retry) == ("StoreDenied", False)
    store.close()


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    """Whoever vouches for a provider; its certificate is in `ca.pem`."""
    made = Authority("a provider")
    (tmp_path / "ca.pem").write_bytes(made.certificate)
    return made


def serving(authority: Authority, folder: Path, host: str) -> ssl.SSLContext:
    pair = authority.issue("s3", hosts=(host,))
    (folder / "s3.pem").write_bytes(pair.certificate + pair.key)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(folder / "s3.pem")
    return context


def test_tls_is_verified(minio: S3Server, authority: Authority, tmp_path: Path) -> None:
    where, trust = minio.new_prefix(), tmp_path / "ca.pem"
    with S3Faults(minio.endpoint, serving(authority, tmp_path, "127.0.0.1")) as proxy:
        store = open_store(where, endpoint=proxy.endpoint, trust=trust)
        store.put("wal/1", [noise(PARTS)])
        assert read(store, "wal/1") == noise(PARTS)
        store.close()
        refused(open_store(where, endpoint=proxy.endpoint, tries=1))
    with S3Faults(minio.endpoint, serving(authority, tmp_path, "s3.example.org")) as proxy:
        refused(open_store(where, endpoint=proxy.endpoint, trust=trust, tries=1))


def refused(store: S3Store) -> None:
    with pytest.raises(StoreError, match="its certificate is not vouched for") as caught:
        store.put("wal/2", [b"x"])
    assert (caught.value.code, caught.value.retry) == ("StoreDenied", False)
    store.close()


@pytest.mark.parametrize("endpoint", ["http://192.0.2.1:9000", "http://s3.example.org", "ftp://127.0.0.1", "s3"])
def test_nothing_goes_over_the_network_in_plain(endpoint: str) -> None:
    with pytest.raises(StoreError, match="must be `https://host:port`") as caught:
        S3Store("far", Bucket("bucket", endpoint, credentials=Credentials("a", "b")))
    assert caught.value.code == "StoreMisused"


def test_addresses_that_make_no_sense(tmp_path: Path) -> None:
    known = Credentials("a", "b")
    for where in (
        Bucket("bucket", "https://", credentials=known),
        Bucket("bucket", "https://bad host", credentials=known),
        Bucket("bucket", "https://s3.example.org", credentials=known, trust=tmp_path / "none.pem"),
        Bucket("bucket", credentials=Credentials("a", "")),
        Bucket("bucket", credentials=known, region="not a region"),
    ):
        with pytest.raises(StoreError) as caught:
            S3Store("far", where)
        assert (caught.value.code, caught.value.retry) == ("StoreMisused", False)


@pytest.mark.parametrize("prefix", ["/a", "a/", "../a", "a b"])
def test_a_prefix_that_can_not_be(prefix: str) -> None:
    with pytest.raises(StoreError):
        S3Store("far", Bucket("bucket", prefix=prefix))


def test_what_a_person_is_told(store: S3Store, proxy: S3Faults) -> None:
    with proxy.rule("PUT", status=403), pytest.raises(StoreError) as caught:
        store.put("x", [b"x"])
    assert re.fullmatch(
        r"The store far \(bucket \S+\) could not be written: the store refuses these credentials \(AccessDenied\)\. "
        r"Correct them, or what they are allowed to do\.",
        str(caught.value),
    )
