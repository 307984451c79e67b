"""What says that a backup is whole: manifests of restore points, and the moments between them. Imports no Django.

Both are JSON, readable without a key: expiry, replication and cheap checks need none. What they list is bound to them
by a seal, the SHA-256 of the rest encrypted with a data key of this backup; so whoever restores notices a manifest that
anybody but the engine wrote. Personal names (media ids) are in encrypted objects only. docs/backups.md is the page.
"""

from __future__ import annotations

import base64
import hashlib
import uuid
from datetime import datetime
from typing import Any, TypeVar

import msgspec

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
    """Its media index, a full one."""
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
    """The newest media index, full or not."""


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
