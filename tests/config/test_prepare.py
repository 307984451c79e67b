"""What is done once before the processes start."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from django.core.management import call_command
from django.core.management.base import CommandError

if TYPE_CHECKING:
    from accounts.models import User


@pytest.mark.django_db(transaction=True)
def test_a_root_key_that_is_missed_is_never_made_anew(alice: User, settings: Any, tmp_path: Path) -> None:
    key = tmp_path / "typo" / "root.key"
    settings.HEARTH = {**settings.HEARTH, "HEARTH_KEY_FILE": str(key)}
    with pytest.raises(CommandError, match=r"root key .* is missing.*Nothing was changed"):
        call_command("prepare")
    assert not key.exists()
