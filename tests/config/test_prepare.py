"""What is done once before the processes start."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from django.core.management import call_command
from django.core.management.base import CommandError

from config.embedded import state
from config.embedded.console import StartRefused
from config.management.commands import prepare
from security.sources.keyfile import KeyFileSource

if TYPE_CHECKING:
    from accounts.models import User


@pytest.mark.django_db(transaction=True)
def test_a_root_key_that_is_missed_is_never_made_anew(alice: User, settings: Any, tmp_path: Path) -> None:
    key = tmp_path / "typo" / "root.key"
    settings.HEARTH = {**settings.HEARTH, "HEARTH_KEY_FILE": str(key)}
    with pytest.raises(CommandError, match=r"root key .* is missing.*Nothing was changed"):
        call_command("prepare")
    assert not key.exists()


@pytest.mark.django_db
def test_after_a_root_rotation_the_first_key_file_may_go(
    alice: User, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HEARTH_KEY_FILE", "HEARTH_HSM_MODULE"):
        monkeypatch.delenv(name, raising=False)
    first = tmp_path / "keys" / "root.key"
    source = KeyFileSource(first)
    source.create()
    source.create()
    first.unlink()
    (tmp_path / "postgres").mkdir()
    (tmp_path / "postgres" / "PG_VERSION").touch()
    state._check_whole(tmp_path)
    prepare.Command()._key_file(first)
    assert len(source.roots()) == 1
    (tmp_path / "keys" / next(first.parent.iterdir())).unlink()
    with pytest.raises(StartRefused, match="is missing"):
        state._check_whole(tmp_path)
    with pytest.raises(CommandError, match="is missing"):
        prepare.Command()._key_file(first)
