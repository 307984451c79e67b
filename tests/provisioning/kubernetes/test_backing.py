"""What Hearth writes so that a server in a cluster is backed up: the agent's Secret, and its part of a MatrixServer."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from backups.engine.settings import S3StoreAt, Settings, load
from provisioning.providers.base import ProviderError, ServerSpec
from provisioning.providers.kubernetes import backing, objects
from provisioning.providers.kubernetes.place import Place, Postgres
from tests.chart.render import Rendered, render
from tests.provisioning.kubernetes.test_objects import BUCKET, PLACE, SPEC

STORE = {
    "type": "s3",
    "name": "first",
    "endpoint": "https://store.example:9000",
    "bucket": "backups",
    "region": "",
    "prefix": SPEC.server_id,
    "credentials_file": "store.json",
}
KEYS = json.dumps({"access_key": "agent", "secret_key": "store-secret-word"}).encode()
BACKUP: dict[str, Any] = {
    "module": "backups.engine",
    "settings": {
        "organisation": SPEC.organisation_id,
        "synapse_version": SPEC.version,
        "name_key_file": "name.key",
        "policy": {"base_every": 86400},
        "store": STORE,
    },
    "files": {
        name: base64.b64encode(data).decode() for name, data in {"name.key": b"n" * 32, "store.json": KEYS}.items()
    },
}
WHERE = replace(
    PLACE,
    backup_image="images.example/hearth-backup:1",
    backup_issuer="hearth-internal",
    internal_address="https://hearth.example:18000",
)
BACKED_UP = replace(SPEC, backup=BACKUP)


def content(spec: ServerSpec = BACKED_UP, place: Place = WHERE) -> dict[str, bytes]:
    found = objects.backup_secret(spec, place)
    assert found is not None
    return {key: base64.b64decode(value) for key, value in found["data"].items()}


def settings(folder: Path, **where: Any) -> Settings:
    """Return the settings as the engine itself reads them."""
    place = folder / "settings.json"
    place.write_bytes(content(**where)["settings.json"])
    return load(place)


def rendered(**where: Any) -> Rendered:
    spec, place = where.get("spec", BACKED_UP), where.get("place", WHERE)
    return render(objects.matrix_server(spec, place)["spec"])


def test_the_engine_understands_what_it_is_told_and_finds_all_of_it_in_its_pod(tmp_path: Path) -> None:
    found = settings(tmp_path)
    assert (found.server, found.organisation, found.server_name) == (
        SPEC.server_id,
        SPEC.organisation_id,
        SPEC.server_name,
    )
    assert found.signing_key_id == objects.signing_key_id(SPEC)
    assert isinstance(found.store, S3StoreAt)
    assert found.hearth is not None
    assert found.serve is not None
    pod = rendered().pods()["backup-agent"]["spec"]
    (container,) = pod["containers"]
    mounted = {each["mountPath"] for each in container["volumeMounts"]}
    files = [found.name_key_file, found.store.credentials_file, found.database.password_file]
    assert {str(Path(each).parent) for each in files} == {backing.FILES} <= mounted
    assert {Path(each).name for each in files} <= set(content())
    assert str(Path(found.hearth.certificate).parent) in mounted
    assert str(Path(found.database.sslrootcert).parent) in mounted
    assert {*found.configuration.values(), found.media, str(Path(found.state).parent)} <= mounted
    assert found.serve.port == container["ports"][0]["containerPort"]


def test_media_in_a_bucket_are_read_with_keys_of_their_own_file(tmp_path: Path) -> None:
    found = settings(tmp_path, place=replace(WHERE, bucket=BUCKET))
    assert (found.media, found.media_bucket is not None) == ("", True)
    assert found.media_bucket is not None
    assert (found.media_bucket.bucket, found.media_bucket.prefix) == (BUCKET.bucket, f"servers/{SPEC.server_id}")
    keys = json.loads(content(place=replace(WHERE, bucket=BUCKET))["media.json"])
    assert keys == {"access_key": BUCKET.access_key, "secret_key": BUCKET.secret_key}


def test_the_database_knows_the_role_by_the_same_password() -> None:
    found = content()
    (role,) = rendered()["Cluster/postgres"]["spec"]["managed"]["roles"]
    assert (found["username"].decode(), role["passwordSecret"]["name"]) == (role["name"], backing.SECRET)
    assert found["password"] == content()["password"], "it stays as long as the server's key of names"
    files = BACKUP["files"] | {"name.key": base64.b64encode(b"m" * 32).decode()}
    assert content(replace(BACKED_UP, backup=BACKUP | {"files": files}))["password"] != found["password"]


def test_it_may_reach_the_store_and_hearth_by_their_ports() -> None:
    assert objects.matrix_server(BACKED_UP, WHERE)["spec"]["backup"]["egress"] == {"ports": [9000, 18000]}
    assert [backing.port_of(each) for each in ("https://a", "http://a", "http://a:9000")] == [443, 80, 9000]


def test_no_secret_is_in_the_matrix_server_and_a_new_one_restarts_the_agent() -> None:
    text = json.dumps(objects.matrix_server(BACKED_UP, WHERE))
    secrets = [value.decode() for name, value in content().items() if name in ("password", "store.json", "name.key")]
    assert [each for each in (*secrets, "store-secret-word") if each in text] == []

    def revision(spec: ServerSpec) -> str:
        return str(objects.matrix_server(spec, WHERE)["spec"]["backup"]["secret"]["revision"])

    other = BACKUP["files"] | {"store.json": base64.b64encode(KEYS.replace(b"word", b"text")).decode()}
    assert revision(BACKED_UP) == revision(BACKED_UP)
    assert revision(BACKED_UP) != revision(replace(BACKED_UP, backup=BACKUP | {"files": other}))


@pytest.mark.parametrize(
    ("spec", "place"),
    [
        (SPEC, WHERE),
        (BACKED_UP, PLACE),
        (BACKED_UP, replace(WHERE, postgres=Postgres("db.example", 5432, "hearth", "word"))),
        (replace(BACKED_UP, backup=BACKUP | {"settings": BACKUP["settings"] | {"store": {"type": "folder"}}}), WHERE),
    ],
    ids=["no store", "no image", "shared database", "a folder"],
)
def test_who_can_not_be_backed_up_here_is_not(spec: ServerSpec, place: Place) -> None:
    assert objects.backup_secret(spec, place) is None
    assert "backup" not in objects.matrix_server(spec, place)["spec"]


@pytest.mark.parametrize(
    "files", [{}, {"name.key": "???"}, {"name.key": "YQ==", "settings.json": "YQ=="}], ids=["none", "no base64", "ours"]
)
def test_what_can_not_be_understood_is_refused(files: dict[str, str]) -> None:
    with pytest.raises(ProviderError, match="can't be understood"):
        objects.backup_secret(replace(BACKED_UP, backup=BACKUP | {"files": files}), WHERE)
