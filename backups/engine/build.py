"""An engine as its settings say: which store, whose keys, which media. Imports no Django."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from backups.engine.settings import FolderStoreAt, HearthAt, S3StoreAt, Settings, SettingsError
from backups.engine.stores.base import Store
from backups.engine.stores.opening import opened
from security.datakeys.client import DataKeys
from security.streams import DataKey
from security.transport.client import InternalClient
from security.transport.errors import Unreachable

if TYPE_CHECKING:
    from backups.engine.agent import Engine


def build(settings: Settings) -> Engine:
    """Return the engine, not yet running. Raises `SettingsError`, `StoreError`."""
    from backups.engine.agent import Engine  # noqa: PLC0415 (what is not used is not imported)

    if settings.hearth is None:
        raise SettingsError("The settings don't say where Hearth is, and without it there are no data keys.")
    hearth = Hearth(settings.hearth)
    return Engine(settings, open_store(settings), hearth, hearth=hearth, media=None)


class Placed(Protocol):
    """Settings that say which store."""

    @property
    def store(self) -> FolderStoreAt | S3StoreAt: ...


def open_store(settings: Placed) -> Store:
    """Return the store. Raises `SettingsError`, `StoreError`."""
    return opened(settings.store)


class Hearth:
    """Hearth's internal listener. Its address may change while the engine runs: the agent beside it is told."""

    def __init__(self, at: HearthAt) -> None:
        self._at = at
        self._now: tuple[str, InternalClient] | None = None

    def fresh(self, purpose: str, name: str) -> tuple[uuid.UUID, DataKey]:
        """As `DataKeys` does."""
        return DataKeys(self._client()).fresh(purpose, name)

    def publish(self, identities: Iterable[uuid.UUID]) -> None:
        """As `DataKeys` does."""
        DataKeys(self._client()).publish(identities)

    def unwrap(self, grant: uuid.UUID, identity: uuid.UUID) -> DataKey:
        """As `DataKeys` does."""
        return DataKeys(self._client()).unwrap(grant, identity)

    def post(self, path: str, body: dict[str, Any], *, repeatable: bool = False) -> dict[str, Any]:
        """As `InternalClient` does."""
        return self._client().post(path, body, repeatable=repeatable)

    def _client(self) -> InternalClient:
        address = self._address()
        if self._now is None or self._now[0] != address:
            files = (Path(self._at.certificate), Path(self._at.key), Path(self._at.trust))
            self._now = address, InternalClient(address, *files)
        return self._now[1]

    def _address(self) -> str:
        if self._at.address:
            return self._at.address
        try:
            return Path(self._at.address_file).read_text(encoding="utf-8").strip()
        except OSError:
            raise Unreachable("Nobody told yet where Hearth is. It is asked again.") from None
