"""What says that a backup is whole: manifests of restore points, the moments between them, media. Imports no Django.

All are JSON, readable without a key: expiry, replication and cheap checks need none. What they list is bound to them
by a seal, the SHA-256 of the rest encrypted with a data key of this backup; so whoever restores notices a manifest that
anybody but the engine wrote. Personal names (media ids) are in encrypted objects only. docs/backups.md is the page.
"""

from __future__ import annotations

import base64
import hashlib
import uuid
from collections.abc import Iterator
from datetime import datetime
from typing import Any, TypeVar

import msgspec

from backups.engine import names
from security.streams import Cipher, Context, DataKey, StreamError, decrypt, encrypt
from security.streams.flow import Keys

FORMAT = 1
T = TypeVar("T", bound="Sealed")


class ManifestError(Exception):
    """A manifest can't be read, or is not what the engine wrote. The text is for a person."""


class Ref(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One object: where it lies, what must lie there. Sizes in bytes."""

    name: str
    size: int
    """As stored."""
    sha256: str
    """Of the bytes as stored, in hex."""
    mark: str = ""
    """What the first store's listing says of it (`Stored.mark`)."""
    key: uuid.UUID
    """The data key that opens it."""
    part_of: str = ""
    """The point, line or run that its encryption names as restore point."""
    plain: int = 0
    """Bytes before encryption (and after compression)."""


class Sealed(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What every manifest has. `at` is the database's time, not the engine's."""

    format: int = FORMAT
    organisation: str
    server: str
    id: str
    at: datetime
    key: uuid.UUID
    """The data key of the seal."""
    seal: str = ""
    """Base64 of an encrypted stream; empty until `seal`."""


class Point(Sealed, kw_only=True):
    """A restore point. Restoring to it needs `base`, WAL of `line` from `begin` to `end`, and the media of `media`."""

    kind: str = "daily"
    """Why it was taken: `daily`, `manual`, `before-upgrade`, `final`, `after-gap`, `after-restore`, ..."""
    server_name: str
    synapse_version: str
    signing_key_id: str
    postgres_version: int
    """As `server_version_num` says, such as 180004."""
    system: str
    """The database's system identifier."""
    line: str
    timeline: int
    begin: str
    """LSN where replay must begin, such as `0/2000028`."""
    end: str
    """LSN from which on the database is consistent."""
    base: Ref
    configuration: Ref
    media: Ref | None = None
    """Its media run's manifest, with an index of all files."""
    media_bytes: int = 0
    media_files: int = 0
    database_bytes: int = 0


class Moment(Sealed, kw_only=True):
    """What could be restored at `at`: all commits before `lsn`, and the media of `media`. A chain within a line."""

    line: str
    number: int
    """0 for the line's first; each next one has one more."""
    previous: str = ""
    """SHA-256 of the moment before, as stored; empty for the first."""
    timeline: int
    lsn: str
    """All WAL before it lies in the store."""
    wal: tuple[Ref, ...] = ()
    """WAL objects since the moment before, in order. Pieces of a segment that has become whole may be gone later."""
    media: Ref | None = None
    """The newest whole media run's manifest."""


class Packed(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """An object with the contents of media files, in short: `media/<run>/<number>`, and as in `Ref`."""

    number: int
    size: int
    sha256: str
    mark: str
    plain: int


class Packs(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Objects of one run, under one key."""

    run: str
    key: uuid.UUID
    objects: tuple[Packed, ...]

    def refs(self) -> Iterator[Ref]:
        """Yield them in full."""
        for each in self.objects:
            yield Ref(
                name=names.media(self.run, each.number),
                size=each.size,
                sha256=each.sha256,
                mark=each.mark,
                key=self.key,
                part_of=self.run,
                plain=each.plain,
            )


class MediaRun(Sealed, kw_only=True):
    """Which media files there were when a run began at `at`, and where their contents lie.

    A **full** one has an index of all files, and lists every object that they need. Another tells what changed since
    `previous`, and needs all that the runs before it list, back to the last full one.
    """

    whole: bool
    """False: the first part of a long run, that the next one goes on with. No point or moment names it."""
    chain: int
    """How many runs lie between this and the last full one; 0: this is a full one."""
    previous: Ref | None = None
    """The manifest of the run before; of a full one too, where there is one."""
    index: Ref
    known: Ref | None = None
    packs: tuple[Packs, ...] = ()
    files: int
    """How many there are in all."""
    bytes: int

    def refs(self) -> Iterator[Ref]:
        """Yield the objects that this run lists: its index and contents, not the manifests before it."""
        yield self.index
        if self.known is not None:
            yield self.known
        for packs in self.packs:
            yield from packs.refs()


def seal(found: T, key: DataKey, name: str) -> bytes:
    """Return the bytes to store under `name`."""
    found.key, found.seal = key.id, ""
    digest = hashlib.sha256(_canonical(found)).digest()
    found.seal = base64.b64encode(b"".join(map(bytes, encrypt([digest], key, _context(found, name), _CIPHER)))).decode()
    return _canonical(found)


def read(data: bytes, kind: type[T], name: str) -> T:
    """Return a manifest without asking for its seal. Raises `ManifestError`."""
    try:
        found = msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ManifestError(f"The manifest {name} can't be read ({error}). Try another copy.") from None
    if found.format != FORMAT:
        raise ManifestError(f"The manifest {name} has format {found.format}, which this release does not know.")
    if found.id != name.rsplit("/", 1)[-1]:
        raise ManifestError(f"Under the name {name} lies the manifest of {found.id}. Try another copy.")
    return found


def check(found: Sealed, keys: Keys, name: str) -> None:
    """Raise `ManifestError` unless the engine wrote exactly this under this name."""
    stored, found.seal = found.seal, ""
    try:
        digest = hashlib.sha256(_canonical(found)).digest()
        told = b"".join(map(bytes, decrypt([base64.b64decode(stored)], keys, _context(found, name))))
    except (StreamError, ValueError) as error:
        raise ManifestError(f"The seal of the manifest {name} is broken: {error}") from None
    finally:
        found.seal = stored
    if told != digest:
        raise ManifestError(f"The manifest {name} was changed after it was written. Try another copy.")


_CIPHER = Cipher.AES_256_GCM


def _canonical(found: Any) -> bytes:
    return msgspec.json.encode(found, order="sorted")


def _context(found: Sealed, name: str) -> Context:
    return Context(organisation=found.organisation, server=found.server, path=name, restore_point=found.id)
