"""Environments: whole or absent, one builder at a time, and a failure that says why and can be tried again."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from provisioning.providers.base import ProviderError
from provisioning.providers.local import environments
from provisioning.providers.local.environments import ensure, environment_python, lock_file
from tenants.releases import RELEASES
from tests.local.conftest import quiet

VERSION = RELEASES[0].version


@pytest.fixture
def empty_lock(tmp_path: Path) -> Path:
    """A lock of nothing: builds an environment without the network."""
    path = tmp_path / "empty.txt"
    path.write_text("# nothing\n")
    return path


def test_two_builders_make_one_environment(tmp_path: Path, empty_lock: Path) -> None:
    lines: list[str] = []
    place = tmp_path / "environments"

    async def both() -> None:
        one = ensure(place, VERSION, progress=lines.append, cache=tmp_path / "cache", lock=empty_lock)
        two = ensure(place, VERSION, progress=lines.append, cache=tmp_path / "cache", lock=empty_lock)
        await asyncio.gather(one, two)

    asyncio.run(both())
    assert environment_python(place, VERSION).exists()
    assert sum("Making the environment" in line for line in lines) == 1
    assert any("waiting for it" in line for line in lines)
    assert [path.name for path in place.iterdir() if path.is_dir()] == [f"synapse-{VERSION}"]


def test_half_built_ones_are_cleared(tmp_path: Path, empty_lock: Path) -> None:
    place = tmp_path / "environments"
    half = place / f".synapse-{VERSION}.abcdef" / "venv"
    half.mkdir(parents=True)
    asyncio.run(ensure(place, VERSION, progress=quiet, cache=tmp_path / "cache", lock=empty_lock))
    assert not half.parent.exists()


def test_an_installation_that_fails_can_be_tried_again_and_says_why(tmp_path: Path) -> None:
    lock = tmp_path / "bad.txt"
    lock.write_text(f"matrix-synapse==0.0.1 --hash=sha256:{'0' * 64}\n")
    lines: list[str] = []
    place = tmp_path / "environments"
    with pytest.raises(ProviderError) as failure:
        asyncio.run(ensure(place, VERSION, progress=lines.append, cache=tmp_path / "cache", lock=lock))
    assert (failure.value.code, failure.value.retry) == ("EnvironmentFailed", True)
    assert "matrix-synapse" in str(failure.value)
    assert any("matrix-synapse" in line for line in lines)
    assert not [path for path in place.iterdir() if path.is_dir()]


@pytest.mark.parametrize("version", ["9.9.9", "../../etc", ""])
def test_a_version_that_does_not_exist_is_refused_for_good(version: str, tmp_path: Path) -> None:
    with pytest.raises(ProviderError) as refused:
        asyncio.run(ensure(tmp_path, version, progress=quiet, cache=tmp_path / "cache"))
    assert (refused.value.code, refused.value.retry) == ("UnknownVersion", False)


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path, empty_lock: Path) -> None:
    (tmp_path / "environments").write_text("in the way")
    with pytest.raises(ProviderError, match="can't be written") as failure:
        asyncio.run(
            ensure(tmp_path / "environments", VERSION, progress=quiet, cache=tmp_path / "cache", lock=empty_lock)
        )
    assert failure.value.retry


def test_uv_gets_what_pip_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "https://mirror.example/simple")
    monkeypatch.setenv("PIP_FIND_LINKS", "/one /two")
    monkeypatch.setenv("HEARTH_SECRET_KEY", "secret")
    monkeypatch.delenv("UV_DEFAULT_INDEX", raising=False)
    environments.pip_options.cache_clear()
    try:
        environment = environments.uv_environment()
    finally:
        environments.pip_options.cache_clear()
    assert environment["UV_DEFAULT_INDEX"] == "https://mirror.example/simple"
    assert environment["UV_FIND_LINKS"] == "/one,/two"
    assert "HEARTH_SECRET_KEY" not in environment


@pytest.mark.parametrize("version", [release.version for release in RELEASES])
def test_every_release_has_a_lock_with_hashes_and_no_registry(version: str) -> None:
    text = lock_file(version).read_text()
    assert f"matrix-synapse=={version}" in text
    assert "http" not in text
    assert all("--hash=sha256:" in entry for entry in text.replace("\\\n", " ").splitlines() if "==" in entry)
