"""Mails are rows here too: pytest-django would keep them in memory."""

from __future__ import annotations

from typing import Any

import pytest


@pytest.fixture(autouse=True)
def _mails_are_rows(settings: Any) -> None:
    settings.EMAIL_BACKEND = "notifications.backends.QueueBackend"


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers that wait on purpose do not; the test of the waiting sets its own time."""
    from accounts import timing

    monkeypatch.setattr(timing, "LEAST_S", 0.0)
