"""Settings that can't be meant stop the start with a sentence."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from django.core.exceptions import ImproperlyConfigured

from config.env import SETTINGS, read
from config.management.commands.settings_page import PAGE, page

ROOT = Path(__file__).resolve().parents[2]


def test_defaults_and_types() -> None:
    values = read(
        {"HEARTH_PORT": "9000", "HEARTH_DEBUG": "yes", "HEARTH_ALLOWED_HOSTS": "a.example,b.example", "HOME": "/"}
    )
    assert (values["HEARTH_PORT"], values["HEARTH_DEBUG"]) == (9000, True)
    assert values["HEARTH_ALLOWED_HOSTS"] == ["a.example", "b.example"]
    assert values["HEARTH_HOST"] == "127.0.0.1"
    assert set(values) == {setting.name for setting in SETTINGS}


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("HEARTH_PROT", "1", "HEARTH_PROT is not a setting of Hearth. Did you mean HEARTH_PORT?"),
        ("HEARTH_XYZZY", "1", "HEARTH_XYZZY is not a setting of Hearth. docs/settings.md lists the settings."),
        ("HEARTH_PORT", "eighty", "HEARTH_PORT must be of type int; 'eighty' is not."),
        ("HEARTH_PORT", "70000", "HEARTH_PORT must lie between 1 and 65535; it is 70000. Nothing was started."),
        ("HEARTH_DEBUG", "ture", "HEARTH_DEBUG must be true or false; 'ture' is neither."),
        ("HEARTH_LOG_FORMAT", "xml", "HEARTH_LOG_FORMAT must be one of text, json; it is 'xml'. Nothing was started."),
        ("HEARTH_HOST", "myhost", "HEARTH_HOST must be an IP address of this machine"),
        ("HEARTH_PUBLIC_URL", "hearth.example", "HEARTH_PUBLIC_URL must be an address such as https://host"),
        ("DATABASE_URL", "sqlite:///x", "DATABASE_URL must be an address such as postgres://host"),
        ("REDIS_URL", "http://:secret@h", "REDIS_URL must be an address such as redis://host"),
    ],
)
def test_what_can_not_be_meant_is_named(name: str, value: str, sentence: str) -> None:
    with pytest.raises(ImproperlyConfigured) as refusal:
        read({name: value})
    assert str(refusal.value).startswith(sentence)
    assert "secret@" not in str(refusal.value)


def test_a_value_may_come_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("quite secret\n")
    assert read({"HEARTH_SECRET_KEY_FILE": str(file)})["HEARTH_SECRET_KEY"] == "quite secret"
    with pytest.raises(ImproperlyConfigured, match=r"Both HEARTH_SECRET_KEY and HEARTH_SECRET_KEY_FILE are set"):
        read({"HEARTH_SECRET_KEY_FILE": str(file), "HEARTH_SECRET_KEY": "x"})
    with pytest.raises(ImproperlyConfigured, match=r"can't be read: No such file or directory"):
        read({"HEARTH_SECRET_KEY_FILE": str(tmp_path / "none")})


def test_the_page_lists_exactly_these_settings() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "Run: manage.py settings_page"


@pytest.mark.parametrize("missing", ["HEARTH_SECRET_KEY", "DATABASE_URL", "REDIS_URL"])
def test_without_a_secret_or_a_service_django_refuses(missing: str) -> None:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'platform'}:{ROOT}"}
    del environment[missing]
    done = subprocess.run(
        [sys.executable, "-c", "import config.settings"], check=False, env=environment, capture_output=True, text=True
    )
    assert done.returncode != 0
    assert f"{missing} is not set. `make run`" in done.stderr
