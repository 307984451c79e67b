"""Configuration and signing key: kept as they are, brought back with the right key or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from backups.engine import configuration
from backups.engine.configuration import ConfigurationError
from provisioning.providers.local.keys import new_signing_key, verify_key


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    contents = {"homeserver.yaml": "server_name: alice.hearth.localhost\n", "signing.key": new_signing_key() + "\n"}
    for name, text in contents.items():
        (tmp_path / name).write_text(text)
    return {name: str(tmp_path / name) for name in contents}


def test_it_brings_files_back_as_they_were(files: dict[str, str]) -> None:
    packed = list(configuration.collect(files))

    assert configuration.read(packed) == {name: Path(path).read_bytes() for name, path in files.items()}
    assert list(configuration.collect(files)) == packed


def test_the_signing_key_is_known_by_its_id(files: dict[str, str]) -> None:
    found = configuration.read(configuration.collect(files))
    identity, _ = verify_key(Path(files["signing.key"]).read_text())

    assert configuration.assert_signing_key(found, identity) == "signing.key"
    with pytest.raises(ConfigurationError, match="other homeservers"):
        configuration.assert_signing_key(found, "ed25519:another")
    with pytest.raises(ConfigurationError):
        configuration.assert_signing_key({"homeserver.yaml": b"x"}, identity)


def test_what_is_no_plain_file_is_refused(files: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/etc/passwd")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "large").write_bytes(b"\0" * (configuration.LARGEST + 1))
    for name in ("link", "pipe", "large", "missing"):
        with pytest.raises(ConfigurationError):
            list(configuration.collect({**files, name: str(tmp_path / name)}))
    for name in ("../up", "/etc/passwd", ""):
        with pytest.raises(ConfigurationError, match="no name"):
            list(configuration.collect({name: files["homeserver.yaml"]}))


def test_what_is_no_whole_archive_is_refused(files: dict[str, str]) -> None:
    packed = b"".join(configuration.collect(files))
    for wrong in (b"", b"no archive", packed[:-1], packed[: len(packed) // 2], packed + packed):
        with pytest.raises(ConfigurationError, match="archive"):
            configuration.read([wrong])
