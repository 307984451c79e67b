"""A token for the tests of the HSM."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.security import softhsm


@pytest.fixture(scope="session")
def token(tmp_path_factory: pytest.TempPathFactory) -> softhsm.Hsm:
    """A SoftHSM2 with one token, for the whole run."""
    return softhsm.start(tmp_path_factory.mktemp("softhsm"))


@pytest.fixture
def hsm(token: softhsm.Hsm) -> Iterator[softhsm.Hsm]:
    """The token, brought back where a test took it away."""
    yield token
    if not token.tokens.exists():
        token.bring_back()


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    return tmp_path / "keys" / "root.key"
