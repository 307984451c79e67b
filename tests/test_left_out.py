"""A test that can't run here is left out loudly, and never where nothing may be left out."""

from __future__ import annotations

import pytest

from tests import left_out


def test_chromium_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(left_out, "browser", lambda: "/usr/bin/chromium")
    assert left_out.need_chromium() == "/usr/bin/chromium"


@pytest.mark.parametrize(("ci", "outcome"), [("", pytest.skip.Exception), ("true", pytest.fail.Exception)])
def test_without_chromium(monkeypatch: pytest.MonkeyPatch, ci: str, outcome: type[BaseException]) -> None:
    monkeypatch.setattr(left_out, "browser", lambda: None)
    monkeypatch.setenv("CI", ci)
    with pytest.raises(outcome, match="no Chromium"):
        left_out.need_chromium()
