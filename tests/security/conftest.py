"""A token for the tests of the HSM."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.security import softhsm

if TYPE_CHECKING:
    from tests.security.places import Faulty


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


def faulty(name: str, folder: Path) -> Faulty:
    from security.keyring.places import FolderPlace
    from tests.security.places import Faulty

    return Faulty(FolderPlace(name, folder / name, make=True))


@pytest.fixture
def one(tmp_path: Path) -> Faulty:
    return faulty("one", tmp_path)


@pytest.fixture
def two(tmp_path: Path) -> Faulty:
    return faulty("two", tmp_path)


@pytest.fixture
def both(one: Faulty, two: Faulty, monkeypatch: pytest.MonkeyPatch) -> list[Faulty]:
    """Two places of key bundles, registered: there are no others."""
    from security.keyring.seams import seams

    monkeypatch.setattr(seams, "places", [lambda: [one, two]])
    return [one, two]
