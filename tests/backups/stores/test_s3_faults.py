"""S3 servers that fail, hang, lie and refuse, networks that break: nothing half is seen, and people are told."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from backups.engine.stores.base import NoSuchObject, ObjectExists, StoreError
from backups.engine.stores.connection import Bucket, Connection
from backups.engine.stores.s3 import S3Store
from tests.backups.s3_faults import S3Faults
from tests.backups.s3_servers import S3Server, open_store
from tests.backups.stores.contract import MIB, names, noise, read

pytestmark = pytest.mark.xdist_group("s3")
each_server = pytest.mark.parametrize("server", ["minio", "plain_s3"], indirect=True)


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


def unfinished(where: Bucket, name: str) -> list[str]:
    """Return the uploads under one name: MinIO lists them only so."""
    answer = Connection(where, "raw").call("list_multipart_uploads", Prefix=f"{where.prefix}/{name}")
    return [each["UploadId"] for each in answer.get("Uploads", ())]


@pytest.mark.parametrize("fault", [{"status": 500}, {"status": 503}, {"cut_request": 70_000}, {"lose_answer": True}])
@pytest.mark.parametrize(("size", "pattern"), [(WHOLE, PUT), (PARTS, PART_TWO), (PARTS, COMPLETE)])
def test_a_passing_fault_while_writing(
    store: S3Store, proxy: S3Faults, fault: dict[str, int], size: int, pattern: str
) -> None:
    """With `lose_answer` the server did it: what is sent again finds the name taken, and that is no fault."""
    if pattern == COMPLETE and "cut_request" in fault:
        fault = {"cut_request": 0}
    data = noise(size)
    with proxy.rule(pattern, times=1, **fault) as rule:
        store.put("wal/1", [data])
    assert rule.hits == 1
    assert read(store, "wal/1") == data
    assert names(store) == ["wal/1"]


@pytest.mark.parametrize("fault", [{"status": 500}, {"cut_request": 70_000}, {"silent": True}])
@pytest.mark.parametrize(("size", "pattern"), [(WHOLE, PUT), (PARTS, PART_TWO)])
def test_a_lasting_fault_while_writing(
    where: Bucket, proxy: S3Faults, fault: dict[str, int], size: int, pattern: str
) -> None:
    store = open_store(where, endpoint=proxy.endpoint, tries=2, seconds=1)
    with (
        proxy.rule(pattern, **fault),
        pytest.raises(StoreError, match=r"far .* could not be written") as caught,
    ):
        store.put("wal/1", [noise(size)])
    assert (caught.value.code, caught.value.retry) == ("StoreAway", True)
    assert names(store) == []
    assert unfinished(where, "wal/1") == []
    store.put("wal/1", [b"again"])
    assert read(store, "wal/1") == b"again"
    store.close()


@pytest.mark.parametrize(("size", "pattern"), [(WHOLE, PUT), (PARTS, COMPLETE)])
def test_a_server_whose_answers_are_all_lost(store: S3Store, proxy: S3Faults, size: int, pattern: str) -> None:
    """It did what it was asked, so the object is there, and it is ours."""
    store.put("wal/0", [noise(PARTS)])
    with proxy.rule(pattern, lose_answer=True):
        stored = store.put("wal/1", [noise(size)])
    assert store.head("wal/1").mark == stored.mark
    assert read(store, "wal/1") == noise(size)


@pytest.mark.parametrize("server", ["plain_s3"], indirect=True)
@pytest.mark.parametrize("size", [WHOLE, PARTS])
def test_a_server_that_keeps_no_metadata_can_not_tell_whose_an_object_is(
    store: S3Store, proxy: S3Faults, size: int
) -> None:
    """It did what it was asked, the answer was lost, and nothing tells our object from another's: that is said."""
    with proxy.rule(PUT if size == WHOLE else COMPLETE, lose_answer=True), pytest.raises(ObjectExists):
        store.put("wal/1", [noise(size)])
    assert read(store, "wal/1") == noise(size)


@each_server
@pytest.mark.parametrize("times", [1, None])
def test_another_writers_object_is_never_taken_for_ours(
    store: S3Store, direct: S3Store, proxy: S3Faults, times: int | None
) -> None:
    """Our put failed on its way; meanwhile somebody else took the name; then it is sent again."""
    direct.put("wal/1", [b"theirs"])
    with proxy.rule(PUT, times=times, status=500), pytest.raises(ObjectExists):
        store.put("wal/1", [b"ours"])
    assert read(direct, "wal/1") == b"theirs"


@pytest.mark.parametrize("fault", [{"status": 500}, {"cut_answer": 3 * MIB + 77}, {"cut_answer": 0}])
@pytest.mark.parametrize("which", ["first range", "any range"])
def test_a_passing_fault_while_reading(
    where: Bucket, proxy: S3Faults, direct: S3Store, fault: dict[str, int], which: str
) -> None:
    data = noise(30 * MIB)
    direct.put("wal/1", [data])
    store = open_store(where, endpoint=proxy.endpoint, tries=6)
    with proxy.rule(GET, times=1 if which == "first range" else 4, **fault) as rule:
        assert read(store, "wal/1") == data
    assert rule.hits == (1 if which == "first range" else 4)
    store.close()


@each_server
def test_a_lasting_fault_while_reading(store: S3Store, proxy: S3Faults) -> None:
    store.put("wal/1", [noise(40 * MIB)])
    pieces = store.get("wal/1")
    assert 0 < len(next(pieces)) <= MIB
    with proxy.rule("GET", status=503), pytest.raises(StoreError, match="could not be read") as caught:
        list(pieces)
    assert caught.value.code == "StoreAway"
    wait_for_memory(store)
    assert len(read(store, "wal/1")) == 40 * MIB


def wait_for_memory(store: S3Store) -> None:
    """Everything is given back, as soon as what was on its way has ended."""
    ended = threading.Event()
    for _ in range(200):
        if not store._downloads.memory.used:
            return
        ended.wait(0.05)
    raise AssertionError("memory was kept")


def test_a_server_that_is_gone(minio: S3Server) -> None:
    store = open_store(replace(minio.where("nothing"), endpoint="http://127.0.0.1:9"), tries=2)
    for call in (lambda: store.put("x", [b"x"]), lambda: read(store, "x"), lambda: names(store), store.check):
        with pytest.raises(StoreError, match="it does not answer") as caught:
            call()
        assert (caught.value.code, caught.value.retry) == ("StoreAway", True)
    store.close()


@each_server
def test_a_full_server(store: S3Store, proxy: S3Faults, direct: S3Store) -> None:
    with proxy.rule("PUT", status=507), pytest.raises(StoreError, match="it is full") as caught:
        store.put("wal/1", [noise(PARTS)])
    assert (caught.value.code, caught.value.retry) == ("StoreFull", False)
    assert names(direct) == []


@pytest.mark.parametrize("size", [WHOLE, PARTS])
@pytest.mark.parametrize("status", [400, 501])
def test_a_server_without_newer_checksums(store: S3Store, proxy: S3Faults, size: int, status: int) -> None:
    """Then it checks each body by its MD5."""
    with proxy.rule("(PUT|POST) ", status=status, code="InvalidArgument", header="x-amz-checksum"):
        store.put("wal/1", [noise(size)])
        with pytest.raises(ObjectExists):
            store.put("wal/1", [noise(size)])
    sent = [each for each in proxy.requests if re.search(r"^PUT .*/wal/1[? ]", each)]
    assert sent
    assert all("content-md5" in each for each in sent)
    assert read(store, "wal/1") == noise(size)


def test_a_server_with_newer_checksums_is_sent_no_others(store: S3Store, proxy: S3Faults) -> None:
    store.put("wal/0", [noise(PARTS)])
    begun = len(proxy.requests)
    store.put("wal/1", [noise(PARTS)])
    sent = [each for each in proxy.requests[begun:] if each.startswith("PUT ")]
    assert len(sent) == 3
    assert all("x-amz-checksum-crc32" in each and "content-md5" not in each for each in sent)


@pytest.mark.parametrize("size", [WHOLE, PARTS])
@pytest.mark.parametrize("status", [400, 501])
def test_a_server_that_knows_no_conditions(store: S3Store, proxy: S3Faults, size: int, status: int) -> None:
    with proxy.rule("(PUT|POST) ", status=status, code="InvalidArgument", header="if-none-match"):
        store.put("wal/1", [noise(size)])
        with pytest.raises(ObjectExists):
            store.put("wal/1", [noise(size)])
        found = {each.what: each.state for each in store.check()}
    assert found["write-once names"] == "unsupported"
    assert read(store, "wal/1") == noise(size)


@each_server
def test_bytes_that_are_changed_on_their_way(store: S3Store, proxy: S3Faults, where: Bucket) -> None:
    """The server compares them with the checksum that the signature covers."""
    store.put("wal/0", [b"x"])
    for size in (WHOLE, PARTS):
        with proxy.rule(r"PUT .*/wal/1", damage=True), pytest.raises(StoreError, match="were changed") as caught:
            store.put("wal/1", [noise(size)])
        assert (caught.value.code, caught.value.retry) == ("StoreDamaged", True)
        assert names(store) == ["wal/0"]
        assert unfinished(where, "wal/1") == []


def test_a_slow_server(where: Bucket, proxy: S3Faults, direct: S3Store) -> None:
    """One that goes on sending is waited for: the time limit is for silence."""
    store = open_store(where, endpoint=proxy.endpoint, tries=1, seconds=1)
    direct.put("wal/1", [noise(3 * MIB)])
    with proxy.rule(GET, pause=0.05):
        assert read(store, "wal/1") == noise(3 * MIB)
    store.close()


def overwrite(where: Bucket, name: str, data: bytes) -> None:
    """Do what only an administrator can."""
    Connection(where, "raw").call("put_object", name=name, Body=data)


def test_an_object_that_is_replaced_while_it_is_read(store: S3Store, proxy: S3Faults, where: Bucket) -> None:
    store.put("wal/1", [noise(40 * MIB)])
    pieces = store.get("wal/1")
    next(pieces)
    overwrite(where, "wal/1", noise(40 * MIB, 2))
    with pytest.raises(StoreError, match="was replaced while it was read") as caught:
        list(pieces)
    assert caught.value.code == "StoreDamaged"


@each_server
def test_an_object_that_is_lost_while_it_is_read(store: S3Store, direct: S3Store, server: S3Server) -> None:
    store.put("wal/1", [noise(40 * MIB)])
    pieces = store.get("wal/1")
    next(pieces)
    direct.delete(["wal/1"])
    # rclone sometimes begins an answer about what has just gone and never ends it.
    known = NoSuchObject if server.kind == "minio" else (NoSuchObject, StoreError)
    with pytest.raises(known):
        list(pieces)


class _Falters(BaseHTTPRequestHandler):
    """Begins to say that something is missing, and never comes to an end."""

    def do_GET(self) -> None:
        self.send_response(404)
        self.send_header("Content-Length", "400")
        self.end_headers()
        self.wfile.write(b"<?xml")
        self.wfile.flush()
        self.rfile.read(1)  # until the other side has gone

    def log_message(self, *_: object) -> None:
        return


def test_an_answer_that_falters_and_is_no_object(where: Bucket) -> None:
    """botocore reads an error's text itself, and leaves the errors of its own client as they are."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Falters) as falters:
        threading.Thread(target=falters.serve_forever, args=(0.05,)).start()
        store = open_store(where, endpoint=f"http://127.0.0.1:{falters.server_port}", tries=1, seconds=1)
        with contextlib.closing(store), pytest.raises(StoreError, match="does not answer") as caught:
            list(store.get("wal/1"))
        falters.shutdown()
    assert (caught.value.code, caught.value.retry) == ("StoreAway", True)


@each_server
def test_a_listing_tells_that_other_bytes_are_there(store: S3Store, where: Bucket) -> None:
    """A server that was itself restored from an old copy, or somebody who wrote over an object."""
    stored = store.put("wal/1", [noise(WHOLE)])
    overwrite(where, "wal/1", noise(WHOLE, 2))
    [listed] = store.listing()
    assert listed.size == stored.size
    assert listed.mark != stored.mark


WRITER = """
import os, sys, time
from backups.engine.stores.connection import Bucket, Credentials
from backups.engine.stores.s3 import S3Store
_, bucket, endpoint, prefix = sys.argv
known = Credentials(os.environ["KEY"], os.environ["SECRET"])
def pieces():
    for _ in range(30):
        yield bytes(1 << 20)
    print("half", flush=True)
    time.sleep(300)
S3Store("far", Bucket(bucket, endpoint, prefix=prefix, credentials=known)).put("points/1", pieces())
"""


@each_server
def test_a_killed_writer_leaves_nothing_to_see_and_is_swept(where: Bucket, direct: S3Store) -> None:
    assert where.credentials
    environment = os.environ | {
        "PYTHONPATH": "platform:.",
        "KEY": where.credentials.key_id,
        "SECRET": where.credentials.secret,
    }
    argv = [sys.executable, "-c", WRITER, where.bucket, where.endpoint, where.prefix]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, env=environment) as writer:
        assert writer.stdout is not None
        said = writer.stdout.readline()
        writer.send_signal(signal.SIGKILL)
    assert said == b"half\n"
    assert names(direct) == []
    assert len(unfinished(where, "points/1")) == 1
    assert direct.sweep() == 0, "it could be a living writer's"
    found = {each.what: each for each in direct.check()}["unfinished uploads"]
    impatient = S3Store("far", where, stale=timedelta(seconds=-5))
    if found.state == "off":
        assert impatient.sweep() == 1
        assert unfinished(where, "points/1") == []
    else:
        assert found.state == "unsupported", "MinIO lists none, removes them after a day, and we say so"
    assert direct.put("points/1", [b"new"]).size == 3
    impatient.close()
