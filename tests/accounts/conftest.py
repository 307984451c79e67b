"""Mails are rows here too: pytest-django would keep them in memory."""

from __future__ import annotations

from typing import Any

import pytest


@pytest.fixture(autouse=True)
def _mails_are_rows(settings: Any) -> None:
    settings.EMAIL_BACKEND = "notifications.backends.QueueBackend"
