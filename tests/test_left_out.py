"""A test that can't run here is left out loudly, and never where nothing may be left out."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import left_out


def test_chromium_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(left_out, "browser", lambda: "/usr/bin/chromium")
    assert left_out.need_chromium() == "/usr/bin/chromium"


@pytest.mark.parametrize(("ci", "outcome"), [("", pytest.skip.Exception), ("true", pytest.fail.Exception)])
@pytest.mark.parametrize(("name", "package"), [("postgres_tls", "postgresql"), ("redis_tls", "redis-server")])
def test_without_servers_with_tls(
    monkeypatch: pytest.MonkeyPatch, ci: str, outcome: type[BaseException], name: str, package: str
) -> None:
    for each in ("postgres_tls", "redis_tls"):
        monkeypatch.setattr(left_out, each, lambda: Path("/usr"))
    left_out.need_tls_servers()
    monkeypatch.setattr(left_out, name, lambda: None)
    monkeypatch.setenv("CI", ci)
    with pytest.raises(outcome, match=f"{package} is missing"):
        left_out.need_tls_servers()


@pytest.mark.parametrize(("ci", "outcome"), [("", pytest.skip.Exception), ("true", pytest.fail.Exception)])
def test_without_chromium(monkeypatch: pytest.MonkeyPatch, ci: str, outcome: type[BaseException]) -> None:
    monkeypatch.setattr(left_out, "browser", lambda: None)
    monkeypatch.setenv("CI", ci)
    with pytest.raises(outcome, match="no Chromium"):
        left_out.need_chromium()
