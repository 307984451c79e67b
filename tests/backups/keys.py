"""Data keys without Hearth: in memory, and in a file where several processes of one test must know them."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterable
from pathlib import Path

from security.streams import DataKey
from security.transport.errors import Unreachable


class MemoryKeys:
    """A `KeyService`. Remembers what was published, and opens what it made. `away` makes it refuse."""

    def __init__(self) -> None:
        self.made: dict[uuid.UUID, DataKey] = {}
        self.published: set[uuid.UUID] = set()
        self.purposes: list[tuple[str, str]] = []
        self.away = False

    def fresh(self, purpose: str, name: str) -> tuple[uuid.UUID, DataKey]:
        self._answer()
        key = DataKey.fresh()
        self.made[key.id] = key
        self.purposes.append((purpose, name))
        return key.id, key

    def publish(self, identities: Iterable[uuid.UUID]) -> None:
        self._answer()
        self.published |= set(identities)

    def open(self, identity: uuid.UUID) -> DataKey:
        """Return a key; one that was used before it was published is a fault of the engine's."""
        assert identity in self.published
        return self.made[identity]

    def _answer(self) -> None:
        if self.away:
            raise Unreachable("Hearth does not answer (a test).")


class FileKeys:
    """A `KeyService` whose keys outlive the process: one line of JSON in `path` for each that was published."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._made: dict[uuid.UUID, DataKey] = {}

    def fresh(self, purpose: str, name: str) -> tuple[uuid.UUID, DataKey]:
        assert purpose.startswith("backup.")
        assert 0 < len(name) < 256
        if self.path.with_suffix(".away").exists():
            raise Unreachable("Hearth does not answer (a test).")
        key = DataKey.fresh()
        self._made[key.id] = key
        return key.id, key

    def publish(self, identities: Iterable[uuid.UUID]) -> None:
        with self.path.open("ab") as file:
            for identity in identities:
                line = {"id": str(identity), "key": self._made[identity].reveal().hex()}
                file.write(json.dumps(line).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def open(self, identity: uuid.UUID) -> DataKey:
        """Return a key that any process published."""
        lines = map(json.loads, self.path.read_text(encoding="ascii").splitlines())
        return next(DataKey(identity, bytes.fromhex(each["key"])) for each in lines if each["id"] == str(identity))
