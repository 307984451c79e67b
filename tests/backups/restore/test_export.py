"""Single things of a backup, and all of it in formats that need nothing of Hearth's."""

from __future__ import annotations

import csv
import gzip
import io
import json
import subprocess
import tarfile
import threading
import uuid
from pathlib import Path
from typing import Any

import httpx
import pytest

from backups.engine.objects import KeyService, Vault
from backups.engine.progress import Progress
from backups.engine.restore.errors import RestoreError
from backups.engine.restore.export import Export, Exporter
from backups.engine.restore.keys import OpenKeys
from provisioning.matrix import Homeserver as Client
from tests.backups.clusters import Cluster, run
from tests.backups.keys import MemoryKeys
from tests.backups.restore.synapse import Backed, Person, agent, backed

__all__ = ["agent", "backed"]
pytestmark = pytest.mark.xdist_group("restored-synapse")


def _exported(backed: Backed, name: str, **wanted: Any) -> Path:
    folder = backed.folder / name
    request = backed.request(f"{name}-work", signing_key_id=backed.key_id, tools=backed.tools)
    stop = threading.Event()
    export = Export(request=request, into=str(folder), **wanted)
    Exporter(export, backed.store, OpenKeys(backed.keys.open, stop), Progress(backed.said_by_restore), stop).run()
    assert not Path(request.data).exists()
    assert subprocess.run(["sha256sum", "--quiet", "-c", "SHA256SUMS"], cwd=folder, check=False).returncode == 0
    return folder


def _upload(url: str, person: Person, name: str, data: bytes) -> str:
    headers = {"Authorization": f"Bearer {person.token}", "Content-Type": "image/png"}
    path = f"{url}/_matrix/media/v3/upload"
    found = httpx.post(path, params={"filename": name}, content=data, headers=headers, trust_env=False)
    return str(found.json()["content_uri"])


def _send(person: Person, room: str, uri: str) -> None:
    body = {"msgtype": "m.file", "body": "a file", "url": uri}
    person.ask("PUT", f"rooms/{room}/send/m.room.message/{uri[-8:]}", body)


def test_exports_need_nothing_of_hearth(backed: Backed) -> None:
    spec = backed.homeserver.spec
    url = backed.homeserver.seen().homeserver_url
    with Client(url, spec.server_name) as client:
        admin = client.register_admin("admin", "a long enough password", spec.secrets["registration"])
        assert admin
        client.put_user("alice", admin, password="the password of alice")
        alice = Person(client, "alice", spec.secrets["jwt"])
        room, other = (alice.ask("POST", "createRoom", {})["room_id"] for _ in range(2))
        alice.say(room, 'hello \\ "there"')
        _send(alice, room, _upload(url, alice, "../Ein Bild.png", b"picture one"))
        _send(alice, other, _upload(url, alice, "=two.png", b"picture two"))
    backed.start()
    backed.point()
    backed.covered()
    backed.stop()

    whole = _exported(backed, "whole", what="everything")
    users = _exported(backed, "users", what="tables", tables=("users",))
    events = _exported(backed, "events", what="tables", tables=("event_json", "rooms"), format="jsonl")
    sent = _exported(backed, "sent", what="room", room=room)

    assert sorted(_contents(whole).values()) == [b"picture one", b"picture two"]
    assert (whole / "configuration" / "signing.key").read_text().split() == spec.secrets["signing_key"].split()
    with (users / "users.csv").open(encoding="utf-8") as file:
        found = {row["name"] for row in csv.DictReader(file)}
    assert found == {f"@admin:{spec.server_name}", f"@alice:{spec.server_name}"}
    lines = (events / "event_json.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [json.loads(json.loads(line)["json"])["content"].get("body") for line in lines]
    assert 'hello \\ "there"' in texts
    assert _contents(sent) == {"_Ein Bild.png": b"picture one"}
    _put_back(whole, backed.folder / "store")
    assert _archived(backed) == _relative(whole)
    _loads(backed, gzip.decompress((whole / "database.sql.gz").read_bytes()))

    with pytest.raises(RestoreError, match="no table"):
        _exported(backed, "none", what="tables", tables=("users; DROP TABLE users",))


def _archived(backed: Backed) -> set[str]:
    """Everything as one sealed object, by a call that goes on where one was killed; return its files' names."""
    request = backed.request("sealed", signing_key_id=backed.key_id, tools=backed.tools)
    into = backed.folder / "sealed" / "export"
    stop = threading.Event()
    wanted = Export(request=request, into=str(into), what="everything", archive=str(uuid.uuid4()))
    said = Progress(backed.said_by_restore)

    def exporter(keys: KeyService) -> Exporter:
        return Exporter(wanted, backed.store, OpenKeys(backed.keys.open, stop), said, stop, keys=keys)

    away = MemoryKeys()
    away.away = True
    with pytest.raises(RestoreError, match="no key for the archive") as refused:
        exporter(away).run()
    assert refused.value.retry
    assert into.exists()
    own = MemoryKeys()
    found = exporter(own).run()
    left = [Path(place) for place in (request.data, f"{request.data}.going", request.work, wanted.into)]
    assert not any(place.exists() for place in left)
    for place in left[:2]:  # of a call that was killed before all of it was gone, and nothing was told
        place.mkdir()
        (place / "file").write_bytes(b"")
    assert exporter(own).run() == found, "the archive is not made again"
    assert not any(place.exists() for place in left)

    assert own.purposes == [("backup.export", found["object"])]
    assert backed.store.head(found["object"]).size == found["stored"]
    vault = Vault(store=backed.store, organisation=request.organisation, server=request.server)
    plain = b"".join(bytes(piece) for piece in vault.get(found["object"], lambda one: own.made[one], ""))
    assert len(plain) == found["plain"]
    with tarfile.open(fileobj=io.BytesIO(plain)) as archive:
        tops, names = zip(*(name.split("/", 1) for name in archive.getnames()), strict=True)
        top = archive.extractfile(f"{tops[0]}/media.csv")
        assert top is not None
        names_of_files = {row["name"] for row in csv.DictReader(io.StringIO(top.read().decode()))}
    assert names_of_files == {"../Ein Bild.png", "'=two.png"}, "no formula that somebody else wrote"
    assert len(set(tops)) == 1
    return set(names)


def _relative(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def _put_back(export: Path, store: Path) -> None:
    """The program that comes along puts files to where Synapse looks for them, and finds one that was changed."""
    command = ["/usr/bin/env", "python3", "-I", str(export / "decoder" / "put_media_back.py"), str(export), str(store)]
    assert subprocess.run(command, check=False, capture_output=True).returncode == 0
    with (export / "media.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        one = row["media_id"]
        there = store / "local_content" / one[:2] / one[2:4] / one[4:]
        assert there.read_bytes() == (export / row["file"]).read_bytes()
    first = export / rows[0]["file"]
    before = first.read_bytes()
    first.write_bytes(b"something else")
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert (done.returncode, rows[0]["file"] in done.stderr) == (1, True)
    first.write_bytes(before)


def _contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "media").rglob("*") if path.is_file()}


def _loads(backed: Backed, dump: bytes) -> None:
    """A fresh PostgreSQL takes the dump."""
    cluster = Cluster(backed.folder / "x")
    backed.living.append(cluster)
    cluster.make()
    try:
        cluster.value("CREATE DATABASE theirs TEMPLATE template0 ENCODING UTF8 LC_COLLATE 'C' LC_CTYPE 'C'")
        script = cluster.folder / "dump.sql"
        script.write_bytes(dump)
        psql = ("psql", *cluster.where[:4], "-d", "theirs", "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1")
        run(cluster.folder, *psql, "-f", str(script))
        assert run(cluster.folder, *psql, "-c", "SELECT count(*) FROM users").strip() == "2"
    finally:
        cluster.stop()
