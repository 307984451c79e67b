"""Key bundle: the keyring's wrapped keys, encrypted for one place, so that losing the database loses no backup.

Layout, all numbers big-endian: `HKB1`; the header's length (4 bytes); the header (JSON: bundle id, place, root, date,
bundle key wrapped by that root in base64, and what `Part` says); a 24-byte nonce; then the content, zlib-compressed
JSON, under XChaCha20-Poly1305 with everything before the nonce as associated data. The bundle key is wrapped by the
root key and bound to bundle and place: a copy of a bundle does not open as another place's. Only the root keys are
needed to read it.
"""

from __future__ import annotations

import base64
import json
import struct
import uuid
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from django.db import models
from django.utils import timezone

from security import xchacha
from security.binding import bind
from security.errors import BundleError, WrongKey
from security.keyring import roots
from security.models import DataKey, Erasure, KeyEncryptionKey, RootKey
from security.secret import Key

MAGIC = b"HKB1"
LARGEST_HEADER = 65_536
LARGEST_CONTENT = 1 << 30
DATES = (
    *("created", "rotate_after", "compromised", "destroyed", "reencrypt"),
    *("requested", "destroy_after", "complete_after", "completed"),
)
KEK_FIELDS = ("id", "owner", "version", "state", "root_id", "wrapped", "created", "rotate_after", "compromised")
DATA_KEY_FIELDS = (
    *("id", "kek_id", "wrapped", "owner", "purpose", "server", "object", "shared", "created", "reencrypt"),
)
ROOT_FIELDS = ("id", "state", "created", "rotate_after")
ERASURE_FIELDS = ("owner", "requested", "destroy_after", "destroyed", "complete_after", "completed")
TABLES = ("roots", "keks", "data_keys", "erasures")
Rows = dict[str, list[dict[str, Any]]]
"""The rows of `TABLES` in JSON's types."""


@dataclass(frozen=True)
class Part:
    """Which piece of the keyring a bundle is. Readable without any key, so that a place can be looked through.

    `delta`: some data keys. `full`: part number `part` of the whole keyring, as the run `run` wrote it; the `last` one
    ends it. `roots` are the root keys without which the bundle or one of its keys does not open.
    """

    kind: str = "full"
    run: uuid.UUID | None = None
    part: int = 0
    last: bool = True
    upto: uuid.UUID | None = None
    roots: tuple[str, ...] = ()


@dataclass(frozen=True)
class Bundle:
    """A bundle's content: rows as dictionaries, keys still wrapped."""

    id: uuid.UUID
    place: str
    created: datetime
    roots: list[dict[str, Any]]
    keks: list[dict[str, Any]]
    data_keys: list[dict[str, Any]]
    erasures: list[dict[str, Any]] = field(default_factory=list)
    part: Part = field(default_factory=Part)


@dataclass(frozen=True)
class Label:
    """What a bundle's header says. It is proved only by `parse`."""

    id: uuid.UUID
    place: str
    created: datetime
    part: Part


def build(place: str, owners: Iterable[uuid.UUID] | None = None) -> bytes:
    """Return a bundle of these owners' keys (None: everybody's) for `place`, a stable name such as a region's store."""
    created, rows, root = timezone.now(), read(owners), roots.ensure_root()
    return seal(place, rows, Part(roots=needed_roots(rows, root)), root=root, created=created)


def seal(
    place: str, rows: Rows, part: Part, *, root: RootKey, created: datetime, identity: uuid.UUID | None = None
) -> bytes:
    """Return these rows as a bundle for `place`, under the root key `root`."""
    plain = json.dumps(rows).encode()
    if len(plain) > LARGEST_CONTENT:
        raise BundleError(
            f"This key bundle would hold {len(plain)} bytes, more than can be read again. Nothing was written. Write "
            "several, each for some of the organisations."
        )
    identity = identity or uuid.uuid4()
    with Key.fresh() as key:
        wrapped = roots.source(root.kind).wrap(root.id, key, _binding(identity, place))
        fields = {"bundle": str(identity), "place": place, "root": root.id, "created": created.isoformat()}
        fields |= {name: _json(value) for name, value in vars(part).items()}
        header = json.dumps(fields | {"key": base64.b64encode(wrapped).decode()}).encode()
        front = MAGIC + struct.pack(">I", len(header)) + header
        return front + xchacha.seal_box(key.value, zlib.compress(plain, 6), front)


def needed_roots(rows: Rows, root: RootKey) -> tuple[str, ...]:
    """Return the root keys that a bundle of these rows needs to be of use: its own, and those of its versions."""
    return tuple(sorted({root.id, *(row["root_id"] for row in rows["keks"])}))


def label(data: bytes) -> Label:
    """Return what a bundle's header says, or raise `BundleError`. Opens nothing."""
    _, header = _header(data)
    return Label(uuid.UUID(header["bundle"]), header["place"], datetime.fromisoformat(header["created"]), _part(header))


def parse(data: bytes, place: str) -> Bundle:
    """Open a bundle of `place` with the root key that it names, or raise `BundleError`."""
    front, header = _header(data)
    if header["place"] != place:
        raise BundleError(
            f"This key bundle was written for {header['place']}, not for {place}. Nothing was read from it."
        )
    identity, root = uuid.UUID(header["bundle"]), str(header["root"])
    try:
        wrapped = base64.b64decode(header["key"], validate=True)
        with roots.source(root.partition(":")[0]).unwrap(root, wrapped, _binding(identity, place)) as key:
            plain = xchacha.open_box(key.value, data[len(front) :], front)
    except (WrongKey, xchacha.InvalidTag, ValueError):
        raise BundleError(
            f"The key bundle {identity} for {place} was changed or cut off, or the root key {root} is another one. "
            "Nothing was restored. Use the bundle of the other place."
        ) from None
    content = json.loads(zlib.decompressobj().decompress(plain, LARGEST_CONTENT))
    # Bundles of before a release had no erasures.
    rows = {name: [_rich(row) for row in content.get(name, [])] for name in TABLES}
    return Bundle(identity, place, datetime.fromisoformat(header["created"]), **rows, part=_part(header))


def read(owners: Iterable[uuid.UUID] | None = None) -> Rows:
    """Return all rows of these owners (None: everybody's)."""
    versions = KeyEncryptionKey.objects.exclude(state=KeyEncryptionKey.State.DESTROYED)
    data_keys, erasures = DataKey.objects.all(), Erasure.objects.all()
    if owners is not None:
        chosen = list(owners)
        versions, data_keys = versions.filter(owner__in=chosen), data_keys.filter(owner__in=chosen)
        erasures = erasures.filter(owner__in=chosen)
    return rows_of(versions, data_keys, erasures)


def rows_of(versions: models.QuerySet[Any], data_keys: models.QuerySet[Any], erasures: models.QuerySet[Any]) -> Rows:
    """Read versions first, then data keys, then roots: where one was made or retired in between, read again."""
    while True:
        keks = [_plain(row) for row in versions.values(*KEK_FIELDS)]
        found = [_plain(row) for row in data_keys.values(*DATA_KEY_FIELDS)]
        root_keys = [_plain(row) for row in RootKey.objects.values(*ROOT_FIELDS)]
        usable = {row["id"] for row in root_keys if row["state"] != RootKey.State.RETIRED}
        whole = {row["kek_id"] for row in found} <= {row["id"] for row in keks}
        if whole and {row["root_id"] for row in keks} <= usable:
            ended = [_plain(row) for row in erasures.values(*ERASURE_FIELDS)]
            return {"roots": root_keys, "keks": keks, "data_keys": found, "erasures": ended}


def _part(header: dict[str, Any]) -> Part:
    run, upto = (uuid.UUID(header[name]) if header.get(name) else None for name in ("run", "upto"))
    needed = tuple(str(each) for each in header.get("roots") or [header["root"]])
    kind, last = str(header.get("kind", "full")), bool(header.get("last", True))
    return Part(kind, run, int(header.get("part", 0)), last, upto, needed)


def _header(data: bytes) -> tuple[bytes, dict[str, Any]]:
    fault = BundleError("This is not a key bundle, or it was cut off. Nothing was read from it. Look for another copy.")
    if len(data) < 8 or data[:4] != MAGIC:
        raise fault
    (length,) = struct.unpack(">I", data[4:8])
    front = data[: 8 + length]
    if length > LARGEST_HEADER or len(front) < 8 + length:
        raise fault
    try:
        header = json.loads(front[8:])
        uuid.UUID(header["bundle"])
        datetime.fromisoformat(header["created"])
        _part(header)
        if not all(isinstance(header[name], str) for name in ("place", "root", "key")):
            raise fault
    except (ValueError, KeyError, TypeError, AttributeError):
        raise fault from None
    return front, header


def _binding(identity: uuid.UUID, place: str) -> bytes:
    return bind("hearth key bundle v1", identity, place)


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row in JSON's types."""
    return {name: _json(value) for name, value in row.items()}


def _json(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, bytes | memoryview):
        return base64.b64encode(bytes(value)).decode()
    return str(value) if isinstance(value, uuid.UUID) else value


def _rich(row: dict[str, Any]) -> dict[str, Any]:
    """The way back of `_plain`."""
    out = dict(row)
    for name, value in row.items():
        if value is None:
            continue
        if name in DATES:
            out[name] = datetime.fromisoformat(value)
        elif name == "wrapped":
            out[name] = base64.b64decode(value)
        elif name in ("kek_id", "owner", "server") or (name == "id" and ":" not in value):
            out[name] = uuid.UUID(value)
    return out
