"""A state folder that can't be used is refused with one sentence, and nothing in it is changed."""

from __future__ import annotations

import errno
import os
import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from config.embedded import state as state_module
from config.embedded.console import StartRefused
from config.embedded.services import Postgres
from config.embedded.state import Lock, ensure_secret, explain, prepare_state
from config.embedded.supervisor import refuse_open_inbox

Usage = namedtuple("Usage", "total used free")


def refusal(folder: Path) -> str:
    before = sorted(folder.rglob("*")) if folder.is_dir() else []
    with pytest.raises(StartRefused) as refused:
        prepare_state(folder)
    assert (sorted(folder.rglob("*")) if folder.is_dir() else []) == before
    return str(refused.value)


def test_a_new_folder_is_made_and_its_own_is_taken_again(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "state"
    prepare_state(folder)
    prepare_state(folder)
    assert (folder / "format").read_text() == "hearth state 1\n"
    assert (folder / "secrets").stat().st_mode & 0o777 == 0o700


def test_a_folder_in_which_only_the_tests_left_something_is_taken(tmp_path: Path) -> None:
    (tmp_path / "test" / "environments").mkdir(parents=True)
    prepare_state(tmp_path)


def test_a_file_in_its_place(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("x")
    assert "there is a file in its place" in refusal(tmp_path / "state")
    assert "there is a file in its place" in refusal(tmp_path / "state" / "deeper")


def test_somebody_elses_folder(tmp_path: Path) -> None:
    (tmp_path / "thesis.odt").write_text("x")
    assert "is not a state folder of Hearth: it holds other things (thesis.odt)" in refusal(tmp_path)


def test_a_folder_of_another_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 4242)
    assert f"belongs to another user (uid {tmp_path.stat().st_uid})" in refusal(tmp_path)


def test_a_folder_that_can_not_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: Path("/proc/1").stat().st_uid)
    assert "The state folder /proc/1 can't be used: " in refusal_of_proc()


def refusal_of_proc() -> str:
    with pytest.raises(StartRefused) as refused:
        prepare_state(Path("/proc/1"))  # even root can't write there
    return str(refused.value)


def test_a_newer_hearths_folder(tmp_path: Path) -> None:
    prepare_state(tmp_path)
    (tmp_path / "format").write_text("hearth state 9\n")
    assert "made by a newer Hearth" in refusal(tmp_path)


def test_a_database_without_its_version_or_its_key(tmp_path: Path) -> None:
    prepare_state(tmp_path)
    (tmp_path / "postgres").mkdir()
    assert "its file PG_VERSION is missing" in refusal(tmp_path)
    (tmp_path / "postgres" / "PG_VERSION").write_text("18\n")
    assert "whose secrets only it can open" in refusal(tmp_path)


def test_a_database_of_another_postgresql(tmp_path: Path) -> None:
    (tmp_path / "postgres").mkdir()
    (tmp_path / "postgres" / "PG_VERSION").write_text("15\n")
    with pytest.raises(StartRefused, match="is of PostgreSQL '15', and this Hearth brings 18"):
        Postgres(tmp_path).check_version()


def test_a_disk_that_is_nearly_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**12, 10**12, 700 * 2**20))
    assert "nearly full: 700 MB are free and Hearth wants at least 1024" in refusal(tmp_path)


def test_a_disk_that_fills_up_in_the_middle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "is full. What was stored before is unharmed" in explain(OSError(errno.ENOSPC, "No space"), tmp_path)

    def full(_: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(state_module, "_check_space", full)
    assert "is full. What was stored before is unharmed" in refusal(tmp_path)


def test_a_second_instance_is_told_of_the_first(tmp_path: Path) -> None:
    first = Lock(tmp_path)
    first.write("http://localhost:8123")
    with pytest.raises(StartRefused, match=rf"process {os.getpid()}, http://localhost:8123"):
        Lock(tmp_path)


def test_secrets_are_made_once_and_kept_closed(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    value = ensure_secret(path)
    assert len(value) >= 50
    assert path.stat().st_mode & 0o777 == 0o600
    assert ensure_secret(path) == value
    path.chmod(0o644)
    with pytest.raises(StartRefused, match="chmod 600"):
        ensure_secret(path)


def test_an_open_address_needs_a_mail_server() -> None:
    refuse_open_inbox({"HEARTH_HOST": "127.0.0.2", "HEARTH_SMTP_URL": ""})
    refuse_open_inbox({"HEARTH_HOST": "0.0.0.0", "HEARTH_SMTP_URL": "smtp://mail"})
    with pytest.raises(StartRefused, match="no mail server is set"):
        refuse_open_inbox({"HEARTH_HOST": "0.0.0.0", "HEARTH_SMTP_URL": ""})
