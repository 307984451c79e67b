"""What a restore refuses, and what it says of damaged backups."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from backups.engine import names, verify
from backups.engine.catalogue import Catalogue
from backups.engine.hearth import Order
from backups.engine.names import SEGMENT_SIZE
from backups.engine.replicate import Replication
from backups.engine.restore import disk
from backups.engine.restore.errors import RestoreError
from backups.engine.restore.folder import Folder
from backups.engine.restore.supply import AHEAD
from backups.engine.stores.folder import FolderStore
from tests.backups.engine.conftest import ORGANISATION, SERVER, wait_for
from tests.backups.restore.conftest import Server
from tests.backups.restore.ports import steady
from tests.backups.restore.test_pod import Ports, here, written
from tests.backups.s3_servers import S3Server, open_store

pytestmark = pytest.mark.xdist_group("backed")  # one server's backups, made once
ROWS = "SELECT coalesce(array_agg(id ORDER BY id), '{}') FROM message"


@pytest.fixture(scope="module")
def whole(template: Path) -> Iterator[Server]:
    """A server that was backed up: two restore points, rows 0 to 2 between them and 3 behind."""
    folder = Path(tempfile.mkdtemp(prefix="hb-", dir="/tmp"))
    folder.chmod(0o755)
    server = Server(folder)
    try:
        server.cluster.make(template)
        _fill(server)
        yield server
    finally:
        server.stop()
        server.cluster.stop()
        shutil.rmtree(folder)


def _fill(server: Server) -> None:
    for size in (100, 5000, 9 << 20):
        server.files.add(os.urandom(size), thumbnails=1)
    server.cluster.value("CREATE TABLE message (id int PRIMARY KEY)")
    engine = server.start()
    server.point()
    for number in range(3):
        server.cluster.value("INSERT INTO message VALUES (%s)", number)
        server.files.add(os.urandom(1000))
        server.covered()
        server.cluster.value("SELECT pg_switch_wal()")
    engine.order(Order(id=uuid.uuid4(), kind="backup", reason="manual"))
    server.point(1)
    server.cluster.value("INSERT INTO message VALUES (3)")
    server.files.add(os.urandom(2000))
    server.covered()
    wait_for(lambda: len(server.events("media")) >= 3)
    server.stop()
    server.cluster.stop()


@pytest.fixture
def backed(whole: Server) -> Iterator[Server]:
    """The same with a copy of the store to damage."""
    folder = Path(tempfile.mkdtemp(prefix="hb-", dir="/tmp"))
    folder.chmod(0o755)
    server = Server(folder)
    shutil.copytree(whole.folder / "store", folder / "store")
    server.keys = whole.keys
    server.store = FolderStore("folder", folder / "store")
    try:
        yield server
    finally:
        for each in server.living:
            each.stop()
        shutil.rmtree(folder)


def _catalogue(server: Server) -> Catalogue:
    return Catalogue.read(server.store, ORGANISATION, SERVER)


def _refusal(server: Server, **changes: Any) -> RestoreError:
    with pytest.raises(RestoreError) as caught:
        server.restore(server.request(**changes))
    return caught.value


def _flip(server: Server, name: str) -> None:
    path = server.folder / "store" / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_moments_outside_the_window_are_refused_with_the_window(backed: Server) -> None:
    (window,) = _catalogue(backed).windows()
    for wrong in (window.begin - timedelta(seconds=1), datetime.now(UTC) + timedelta(days=1)):
        error = _refusal(backed, to=wrong)
        assert error.code == "NotRestorable"
        assert f"{window.begin:%Y-%m-%d %H:%M:%S}" in str(error)
    assert _refusal(backed, point="20200101t000000z-00000000").code == "NotRestorable"
    assert not (backed.folder / "r" / "data").exists()


def test_a_restore_point_comes_back_as_it_was_consistent(backed: Server) -> None:
    _, second = sorted(_catalogue(backed).points)

    found = backed.restore(backed.request(point=second))

    assert found["point"] == second
    assert backed.started(backed.request()).value(ROWS) == [0, 1, 2]


def test_a_moment_after_the_last_commit_brings_all_back(backed: Server) -> None:
    catalogue = _catalogue(backed)
    last = catalogue.windows()[0]

    found = backed.restore(backed.request(to=last.tail or last.end))

    assert backed.started(backed.request()).value(ROWS) == [0, 1, 2, 3]
    assert (
        found["media_files"] == len(list((backed.folder / "r" / "media").rglob("*-*"))) + 8 - 4 or found["media_files"]
    )


@pytest.mark.parametrize("what", ["base", "wal", "media", "configuration"])
def test_damage_is_named_with_the_points_that_it_hits(backed: Server, what: str) -> None:
    catalogue = _catalogue(backed)
    first, second = sorted(catalogue.points.values(), key=lambda each: each.at)
    need = catalogue.need()
    name = {
        "base": second.base.name,
        "wal": need.wal[-1].name,
        "media": next(iter(catalogue.chain(need.media[0])[0].packs[-1].refs())).name,
        "configuration": second.configuration.name,
    }[what]
    _flip(backed, name)

    error = _refusal(backed)

    assert (error.code, error.objects) == ("Damaged", (name,))
    assert name in str(error)
    if what in {"base", "configuration"}:
        assert error.points == (second.id,)
        backed.restore(backed.request("r2", point=first.id))
        assert backed.started(backed.request("r2")).value(ROWS) == []


@pytest.mark.parametrize("beside", [True, False])
def test_media_need_no_room_where_only_the_database_goes(
    backed: Server, monkeypatch: pytest.MonkeyPatch, beside: bool
) -> None:
    point = _catalogue(backed).need().point
    free = point.database_bytes + 2 * AHEAD * SEGMENT_SIZE + point.media_bytes - 1
    monkeypatch.setattr(disk, "_free", lambda _: free)
    monkeypatch.setattr(disk, "same", lambda *_: beside)
    if beside:
        assert _refusal(backed).code == "DiskFull"
    else:
        backed.restore(backed.request())


@pytest.mark.parametrize("what", ["base", "media"])  # read by two threads, of which each ends the other
def test_damage_that_a_pod_meets_stays_told(backed: Server, what: str) -> None:
    catalogue = _catalogue(backed)
    need = catalogue.need()
    media = next(iter(catalogue.chain(need.media[0])[0].packs[-1].refs()))
    _flip(backed, need.point.base.name if what == "base" else media.name)
    ports = Ports(*steady(2))
    with here(ports, written(backed), ask=backed.keys.open) as pod:
        found = ports.wait(state="failed")
        assert (found["code"], found["retry"]) == ("Damaged", False)
        assert not _ends(pod)
        assert ports.status_now() == found


def _ends(pod: threading.Thread) -> bool:
    """Whether it ends by itself, which it would do at once."""
    pod.join(1)
    return not pod.is_alive()


def test_what_is_missing_is_told_before_anything_is_fetched(backed: Server) -> None:
    catalogue = _catalogue(backed)
    second = max(catalogue.points.values(), key=lambda each: each.at)
    name = next(each.name for each in catalogue.chain(second.media)[0].refs() if names.is_contents(each.name))
    backed.store.delete([name])

    error = _refusal(backed)

    assert (error.code, error.objects) == ("Damaged", (name,))
    assert second.id in error.points
    assert not (backed.folder / "r" / "data").exists()


def test_a_manifest_that_somebody_changed_is_not_believed(backed: Server) -> None:
    second = max(_catalogue(backed).points)
    path = backed.folder / "store" / names.point(second)
    path.write_bytes(path.read_bytes().replace(b'"kind":"manual"', b'"kind":"manuaL"'))

    error = _refusal(backed)

    assert (error.code, error.objects) == ("Damaged", (names.point(second),))


@pytest.mark.parametrize("latest", [True, False])
def test_a_newest_moment_that_cant_be_read_is_missed(backed: Server, *, latest: bool) -> None:
    (moments,) = _catalogue(backed).moments.values()
    newest = names.moment(moments[-1].line, moments[-1].id)
    path = backed.folder / "store" / newest
    path.write_bytes(path.read_bytes()[:-7])

    error = _refusal(backed) if latest else _refusal(backed, to=moments[-1].at)

    # There is WAL up to there, but which media there were nobody could tell.
    assert (error.code, error.objects) == ("Damaged", (newest,))


def test_a_gap_in_the_log_is_not_crossed(backed: Server) -> None:
    catalogue = _catalogue(backed)
    first, second = sorted(catalogue.points.values(), key=lambda each: each.at)
    wanted = second.at - timedelta(milliseconds=1)
    needed = verify.needed(catalogue, first) | verify.needed(catalogue, second)
    lost = next(each.name for each in catalogue.need(to=wanted).wal if each.name not in needed)
    backed.store.delete([lost])

    error = _refusal(backed, to=wanted)

    assert error.code == "NotRestorable"
    before, after = _catalogue(backed).windows()
    assert before.end < wanted < after.begin
    backed.restore(backed.request("r2", to=before.end))
    # In a copy all WAL is younger than what it holds: that tells nothing of how far it goes before a gap.
    (last,) = (each for each in catalogue.moments[first.line] if each.at == before.end)
    (window, _) = catalogue.without([lost, names.moment(last.line, last.id)]).windows()
    assert window.tail is None


def test_two_at_once_into_one_folder(backed: Server) -> None:
    with Folder(backed.request()):
        assert _refusal(backed).code == "Busy"


def test_what_lies_there_is_not_restored_over(backed: Server) -> None:
    place = backed.folder / "r" / "media"
    request = backed.request()
    place.mkdir()
    (place / "somebodys").write_text("file")

    assert _refusal(backed).code == "NotEmpty"
    assert (place / "somebodys").read_text() == "file"

    shutil.rmtree(place)
    found = backed.restore(request)
    assert backed.restore(request) == found
    assert _refusal(backed, point=min(_catalogue(backed).points)).code == "NotEmpty"


def test_another_organisations_backups_are_none(backed: Server) -> None:
    assert _refusal(backed, organisation="somebody-else").code == "NotRestorable"


def test_the_second_store_alone_is_enough(backed: Server, minio: S3Server) -> None:
    second = open_store(minio.new_prefix())
    try:
        Replication(backed.store, second).turn()
        shutil.rmtree(backed.folder / "store")

        found = backed.restore(backed.request(), second)
    finally:
        second.close()

    assert found["media_hashed"]
    assert backed.started(backed.request()).value(ROWS) == [0, 1, 2, 3]
