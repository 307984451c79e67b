"""Sealed objects in a store: encrypted on the way in, authenticated on the way out. Imports no Django."""

from __future__ import annotations

import hashlib
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from backups.engine.manifest import Ref
from backups.engine.stores.base import Store, StoreError
from security.streams import (
    CHUNK_SIZE,
    HEADER_SIZE,
    SEALED_SIZE,
    Cipher,
    Context,
    DataKey,
    Header,
    decrypt,
    encrypt,
)

DATABASE = Cipher.XCHACHA20_POLY1305
FILES = Cipher.AES_256_GCM


class KeyService(Protocol):
    """Hearth's data keys, as `security.datakeys.client.DataKeys` gives them."""

    def fresh(self, purpose: str, name: str) -> tuple[uuid.UUID, DataKey]: ...

    def publish(self, identities: Iterable[uuid.UUID]) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Vault:
    """One server's objects in one store."""

    store: Store
    organisation: str
    server: str

    def put(self, name: str, pieces: Iterable[bytes | memoryview], key: DataKey, cipher: Cipher, part_of: str) -> Ref:
        """Encrypt the pieces into a new object. `part_of` is the point, line or run that it belongs to."""
        counted = _Counted(pieces)
        stored = self.store.put(name, encrypt(counted, key, self._context(name, part_of), cipher))
        return Ref(
            name=name,
            size=stored.size,
            sha256=stored.sha256,
            mark=stored.mark,
            key=key.id,
            part_of=part_of,
            plain=counted.total,
        )

    def get(self, name: str, keys: Callable[[uuid.UUID], DataKey], part_of: str) -> Iterator[memoryview]:
        """Yield an object's plaintext. Each view is valid until the next; only an end without an error is an end."""
        return decrypt(self.store.get(name), keys, self._context(name, part_of))

    def read(self, ref: Ref, keys: Callable[[uuid.UUID], DataKey], *, hashed: bool = True) -> Iterator[memoryview]:
        """Yield an object's plaintext as `get` does, and at its end compare what is stored with `ref`, to the last bit.

        Raises `StoreError` (`StoreDamaged`) where they differ; authentication alone would take another copy for it.
        Not `hashed`: by key and size alone, for who compares all contents with hashes of their own.
        """
        digest, size = hashlib.sha256(), 0
        damaged = f"{ref.name} is not what was stored under this name. Try another copy."

        def own(identity: uuid.UUID) -> DataKey:
            if identity != ref.key:  # nobody is asked for a key that does not exist
                raise StoreError(damaged, code="StoreDamaged", retry=False)
            return keys(identity)

        def counted() -> Iterator[bytes]:
            nonlocal size
            for piece in self.store.get(ref.name):
                if hashed:
                    digest.update(piece)
                size += len(piece)
                yield piece

        yield from decrypt(counted(), keys, self._context(ref.name, ref.part_of))
        if size != ref.size or (hashed and digest.hexdigest() != ref.sha256):
            raise StoreError(
                f"{ref.name} is not what was stored under this name. Try another copy.",
                code="StoreDamaged",
                retry=False,
            )

    def adopt(self, name: str, part_of: str) -> Ref:
        """Return what there is to know of an object that a crash left unrecorded. Reads it; opens nothing.

        Raises `StoreError`, or `StreamError` when it is no stream.
        """
        digest, size, head = hashlib.sha256(), 0, b""
        for piece in self.store.get(name):
            digest.update(piece)
            size += len(piece)
            head += piece[: HEADER_SIZE - len(head)]
        chunks = (size - HEADER_SIZE) // SEALED_SIZE + 1
        return Ref(
            name=name,
            size=size,
            sha256=digest.hexdigest(),
            mark=self.store.head(name).mark,
            key=Header.parse(head, name).key_id,
            part_of=part_of,
            plain=size - HEADER_SIZE - chunks * (SEALED_SIZE - CHUNK_SIZE),
        )

    def _context(self, name: str, part_of: str) -> Context:
        return Context(organisation=self.organisation, server=self.server, path=name, restore_point=part_of)


class Stretch:
    """Fresh data keys: one for each purpose and stretch of work (a run, an hour of WAL), published before it is used.

    A key of its own for each object would cost a publish every 30 seconds for each server (decision 19); the format
    derives a key for each stream from it, and binds each to its name.
    """

    def __init__(self, service: KeyService) -> None:
        self._service = service
        self._lock = threading.Lock()
        self._found: dict[tuple[str, str], DataKey] = {}

    def key(self, purpose: str, stretch: str) -> DataKey:
        """Return the key of this stretch; from its return on every place of key bundles holds it."""
        with self._lock:
            if (found := self._found.get((purpose, stretch))) is None:
                identity, found = self._service.fresh(purpose, stretch)
                self._service.publish([identity])
                self._found = {each: key for each, key in self._found.items() if each[0] != purpose}
                self._found[purpose, stretch] = found
            return found


class _Counted:
    def __init__(self, pieces: Iterable[bytes | memoryview]) -> None:
        self._pieces = pieces
        self.total = 0

    def __iter__(self) -> Iterator[bytes | memoryview]:
        for piece in self._pieces:
            self.total += len(piece)
            yield piece
