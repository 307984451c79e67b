"""From a store to a running database and its media, at exactly the wanted moment."""

from __future__ import annotations

import time

from tests.backups.restore.conftest import Server

ROWS = "SELECT coalesce(array_agg(id ORDER BY id), '{}') FROM message"


def test_any_moment_comes_back_with_its_rows_and_media(server: Server) -> None:
    cluster = server.cluster
    cluster.value("CREATE TABLE message (id int PRIMARY KEY)")
    server.files.add(b"before" * 1000, thumbnails=2)
    server.start()
    server.point()
    cluster.value("INSERT INTO message VALUES (1)")
    time.sleep(0.1)
    moment = cluster.value("SELECT clock_timestamp()")
    time.sleep(0.1)
    cluster.value("INSERT INTO message VALUES (2)")
    server.files.add(b"after" * 1000)
    server.covered()
    media = server.files.all()
    server.stop()

    found = server.restore(server.request("ra", to=moment))
    latest = server.restore(server.request("rb"))

    assert found["left_out_later"]
    assert server.started(server.request("ra")).value(ROWS) == [1]
    assert server.started(server.request("rb")).value(ROWS) == [1, 2]
    assert latest["media_files"] == len(media)
    restored = server.folder / "rb" / "media"
    assert {
        str(path.relative_to(restored)): path.read_bytes() for path in restored.rglob("*") if path.is_file()
    } == media
    assert (server.folder / "rb" / "configuration" / "signing.key").exists()
