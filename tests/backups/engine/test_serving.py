"""An engine in a pod: what it tells over HTTP, that everything is stored when it says so, and its last backup."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from backups.engine import serving
from backups.engine.hearth import Order
from backups.engine.keys import Keys
from backups.engine.media.build import open_media
from backups.engine.objects import Vault
from backups.engine.progress import Progress
from backups.engine.settings import Database, FolderStoreAt, S3StoreAt, Serve, Settings, SettingsError, load
from backups.engine.stores.folder import FolderStore
from tests.backups.engine.conftest import ORGANISATION, QUICK, SERVER, Bench, wait_for
from tests.backups.engine.faulty import Store, write
from tests.backups.keys import MemoryKeys

SLOW = msgspec.structs.replace(QUICK, media_every=3600, moment_every=3600, moment_at_rest=3600, tail_every=3600)
"""What is stored with it is stored because somebody asked."""


class Asked:
    """Somebody who asks an engine."""

    def __init__(self, port: int) -> None:
        self._address = f"http://127.0.0.1:{port}"

    def get(self, path: str) -> httpx.Response:
        return httpx.get(self._address + path, timeout=60)

    def status(self) -> dict[str, Any]:
        return dict(self.get("/status").json())

    def post(self, path: str, **query: str) -> httpx.Response:
        return httpx.post(self._address + path, params=query, timeout=60)


def test_it_is_ready_with_its_first_restore_point_and_refuses_what_makes_no_sense(bench: Bench) -> None:
    engine = bench.start()
    with serving.served(engine, Serve(host="127.0.0.1", port=0)) as port:
        asked = Asked(port)
        assert asked.get("/livez").status_code == 200
        point = bench.point()
        wait_for(lambda: asked.get("/readyz").status_code == 200)
        found = asked.status()
        assert (found["ready"], found["reason"], found["point"]) == (True, "Written", point.id)
        assert asked.get("/").status_code == 404
        for path in ("/final?id=none", "/final", "/store-all", "/else?id=1", f"/store-all?id={'a' * 200}"):
            assert asked.post(path).status_code == 400, path
        assert (asked.status()["final"], asked.status()["stored"]) == (None, "")


def test_a_fault_that_stays_is_told_and_ends_with_its_cause(
    bench: Bench, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "PASSING", 0.0)
    engine = bench.start()
    with serving.served(engine, Serve(host="127.0.0.1", port=0)) as port:
        asked = Asked(port)
        wait_for(lambda: asked.get("/readyz").status_code == 200)
        store.away = True
        write(bench)
        found = wait_for(lambda: None if (now := asked.status())["ready"] else now)
        assert found["reason"] == "StoreAway"
        assert asked.get("/readyz").status_code == 503
        store.away = False
        wait_for(lambda: asked.get("/readyz").status_code == 200)


def test_everything_is_stored_when_it_says_so(bench: Bench) -> None:
    engine = bench.start(policy=SLOW)
    with serving.served(engine, Serve(host="127.0.0.1", port=0)) as port:
        asked = Asked(port)
        point = bench.point()
        wait_for(lambda: not engine.moments.soon.is_set())
        bench.cluster.value("CREATE TABLE kept (id int)")
        bench.cluster.value("INSERT INTO kept VALUES (7)")
        at = bench.cluster.value("SELECT clock_timestamp()")
        bench.cluster.value("SELECT pg_current_xact_id()")
        assert asked.status()["stored"] == ""
        assert asked.post("/store-all", id="before the night").status_code == 202
        wait_for(lambda: asked.status()["stored"] == "before the night")
        moments = len(bench.events("moment"))
        asked.post("/store-all", id="before the night")
        assert asked.status()["stored"] == "before the night"
        assert len(bench.events("moment")) == moments, "it was done already"
    bench.stop()
    assert bench.restored(point, until=at.isoformat()).value("SELECT id FROM kept") == 7


def test_the_final_backup_is_taken_once_and_then_it_rests(bench: Bench) -> None:
    engine, order = bench.start(), uuid.uuid4()
    with serving.served(engine, Serve(host="127.0.0.1", port=0)) as port:
        asked = Asked(port)
        bench.point()
        assert asked.status()["final"] is None
        found = asked.post("/final", id=str(order)).json()["final"]
        assert (found["id"], found["state"] in ("waiting", "taken", "done")) == (str(order), True)
        final = bench.point(1)
        wait_for(lambda: (asked.status()["final"] or {}).get("state") == "done")
        assert (final.kind, asked.status()["final"]["point"]) == ("final", final.id)
        wait_for(lambda: bench.cluster.value("SELECT count(*) FROM pg_replication_slots") == 0)
        asked.post("/final", id=str(order))
        assert asked.status()["reason"] == "FinalBackupTaken"
    bench.stop()
    again = bench.start()
    with serving.served(again, Serve(host="127.0.0.1", port=0)) as port:
        found = Asked(port).post("/final", id=str(order)).json()["final"]
        assert (found["state"], found["point"]) == ("done", final.id), "it is known after a restart too"
    assert len(bench.events("point-stored")) == 2


def test_a_final_backup_that_hearth_ordered_is_not_copied_again(bench: Bench) -> None:
    engine = bench.start()
    with serving.served(engine, Serve(host="127.0.0.1", port=0)) as port:
        asked = Asked(port)
        bench.point()
        engine.order(Order(id=uuid.uuid4(), kind="backup", reason="final"))
        theirs = bench.point(1)
        bench.cluster.value("CREATE TABLE later (id int)")
        asked.post("/final", id=str(uuid.uuid4()))
        found = wait_for(lambda: now if (now := asked.status()["final"])["state"] == "done" else None)
        assert found["point"] == theirs.id
    assert len(bench.events("point-stored")) == 2


def settings(folder: Path, **changes: Any) -> Settings:
    """Return settings whose media are in a bucket."""
    keys, name_key = folder / "keys.json", folder / "name.key"
    keys.write_text('{"access_key": "alice", "secret_key": "secret"}')
    name_key.write_bytes(b"n" * 32)
    at = S3StoreAt(
        endpoint="http://127.0.0.1:1", bucket="media", prefix="servers/alice", name="media", credentials_file=str(keys)
    )
    values: dict[str, Any] = {
        "organisation": ORGANISATION,
        "server": SERVER,
        "server_name": "alice.example",
        "database": Database(host=str(folder)),
        "state": str(folder / "state"),
        "store": FolderStoreAt(path=str(folder / "store"), make=True),
        "name_key_file": str(name_key),
        "media_bucket": at,
    }
    return Settings(**(values | changes))


def test_media_in_a_bucket_are_read_from_there(tmp_path: Path) -> None:
    told, keys = settings(tmp_path), MemoryKeys()
    vault = Vault(store=FolderStore("folder", tmp_path / "store", make=True), organisation=ORGANISATION, server=SERVER)
    progress = Progress()
    made = open_media(told, vault, Keys(keys, 3600, progress), progress, lambda: False)
    assert made is not None
    assert type(made.source).__name__ == "BucketSource"


def test_media_lie_in_one_place(tmp_path: Path) -> None:
    place = tmp_path / "settings.json"
    place.write_bytes(msgspec.json.encode(msgspec.to_builtins(settings(tmp_path)) | {"media": "/media"}))
    with pytest.raises(SettingsError, match="not in both"):
        load(place)
