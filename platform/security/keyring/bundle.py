"""Key bundle: the keyring's wrapped keys, encrypted for one place, so that losing the database loses no backup.

Layout, all numbers big-endian: `HKB1`; the header's length (4 bytes); the header (JSON: bundle id, place, root, date,
bundle key wrapped by that root in base64); a 24-byte nonce; then the content, zlib-compressed JSON, under
XChaCha20-Poly1305 with everything before the nonce as associated data. The bundle key is wrapped by the root key and
bound to bundle and place: a copy of a bundle does not open as another place's. Only the root key is needed to read it.
"""

from __future__ import annotations

import base64
import json
import struct
import uuid
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.db import transaction
from django.utils import timezone

from audit.services import record
from security import xchacha
from security.binding import bind
from security.errors import BundleError, WrongKey
from security.keyring import roots
from security.models import PLATFORM, DataKey, KeyEncryptionKey, RootKey
from security.secret import Key

MAGIC = b"HKB1"
LARGEST_HEADER = 65_536
LARGEST_CONTENT = 1 << 30
DATES = ("created", "rotate_after", "compromised", "destroyed", "reencrypt")
KEK_FIELDS = ("id", "owner", "version", "state", "root_id", "wrapped", "created", "rotate_after", "compromised")
DATA_KEY_FIELDS = (
    *("id", "kek_id", "wrapped", "owner", "purpose", "server", "object", "shared", "created", "reencrypt"),
)
ROOT_FIELDS = ("id", "state", "created", "rotate_after")


@dataclass(frozen=True)
class Bundle:
    """A bundle's content: rows as dictionaries, keys still wrapped."""

    id: uuid.UUID
    place: str
    created: datetime
    roots: list[dict[str, Any]]
    keks: list[dict[str, Any]]
    data_keys: list[dict[str, Any]]


def build(place: str, owners: Iterable[uuid.UUID] | None = None) -> bytes:
    """Return a bundle of these owners' keys (None: everybody's) for `place`, a stable name such as a region's store."""
    root = roots.ensure_root()
    plain = json.dumps(_rows(owners)).encode()
    if len(plain) > LARGEST_CONTENT:
        raise BundleError(
            f"This key bundle would hold {len(plain)} bytes, more than can be read again. Nothing was written. Write "
            "several, each for some of the organisations."
        )
    identity = uuid.uuid4()
    with Key.fresh() as key:
        wrapped = roots.source(root.kind).wrap(root.id, key, _binding(identity, place))
        fields = {"bundle": str(identity), "place": place, "root": root.id, "created": timezone.now().isoformat()}
        header = json.dumps(fields | {"key": base64.b64encode(wrapped).decode()}).encode()
        front = MAGIC + struct.pack(">I", len(header)) + header
        return front + xchacha.seal_box(key.value, zlib.compress(plain, 6), front)


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
    rows = {name: [_rich(row) for row in content[name]] for name in ("roots", "keks", "data_keys")}
    return Bundle(identity, place, datetime.fromisoformat(header["created"]), **rows)


@transaction.atomic
def restore(actor: Any, bundle: Bundle) -> int:
    """Write a bundle's rows into a new keyring; return how many data keys it brought. All of it or nothing.

    New is one without any organisation's keys. The platform's are made by every start: they stay the active ones, and
    the bundle's versions of them come behind, only to open.
    """
    present = list(KeyEncryptionKey.objects.select_for_update())
    if any(kek.owner != PLATFORM for kek in present):
        raise BundleError("This keyring is not empty, so the bundle was not restored. Restore into a new database.")
    if not present:
        RootKey.objects.all().delete()
    _restore_roots(bundle)
    keks = [KeyEncryptionKey(**row) for row in bundle.keks]
    rows = [DataKey(**row) for row in bundle.data_keys]
    if present:
        _put_behind(max(kek.version for kek in present), [kek for kek in keks if kek.owner == PLATFORM])
        _make_way([row for row in rows if row.owner == PLATFORM and row.shared])
    KeyEncryptionKey.objects.bulk_create(keks)
    DataKey.objects.bulk_create(rows, batch_size=2000)
    root = RootKey.objects.get(state=RootKey.State.ACTIVE)
    after = {"bundle": str(bundle.id), "keks": len(bundle.keks), "data_keys": len(rows)}
    record(actor=actor, verb="keys.restore", object=root, after=after)
    return len(rows)


def _restore_roots(bundle: Bundle) -> None:
    rows = [RootKey(**row) for row in bundle.roots]
    if RootKey.objects.filter(state=RootKey.State.ACTIVE).exists():
        for root in rows:
            root.state = root.state.replace(RootKey.State.ACTIVE, RootKey.State.READABLE)
    RootKey.objects.bulk_create(rows, ignore_conflicts=True)


def _put_behind(last: int, keks: list[KeyEncryptionKey]) -> None:
    """Number a bundle's versions behind the `last` one that is there. A version is part of what its wrapping binds."""
    for number, kek in enumerate(sorted(keks, key=lambda kek: kek.version), last + 1):
        with roots.unwrap(kek) as key:
            kek.version = number
            kek.wrapped = roots.wrap(kek, key)
        if kek.state == KeyEncryptionKey.State.ACTIVE:
            kek.state = KeyEncryptionKey.State.DECRYPT_ONLY


def _make_way(rows: list[DataKey]) -> None:
    """Let the shared keys that are there seal on: the bundle's only open, until a reseal has moved what they seal."""
    for row in rows:
        row.reencrypt = row.reencrypt or timezone.now()


def _rows(owners: Iterable[uuid.UUID] | None) -> dict[str, Any]:
    """Read versions first, then data keys, then roots: where one was made or retired in between, read again."""
    versions = KeyEncryptionKey.objects.exclude(state=KeyEncryptionKey.State.DESTROYED)
    data_keys = DataKey.objects.all()
    if owners is not None:
        chosen = list(owners)
        versions, data_keys = versions.filter(owner__in=chosen), data_keys.filter(owner__in=chosen)
    while True:
        keks = [_plain(row) for row in versions.values(*KEK_FIELDS)]
        found = [_plain(row) for row in data_keys.values(*DATA_KEY_FIELDS)]
        root_keys = [_plain(row) for row in RootKey.objects.values(*ROOT_FIELDS)]
        usable = {row["id"] for row in root_keys if row["state"] != RootKey.State.RETIRED}
        whole = {row["kek_id"] for row in found} <= {row["id"] for row in keks}
        if whole and {row["root_id"] for row in keks} <= usable:
            return {"roots": root_keys, "keks": keks, "data_keys": found}


def _header(data: bytes) -> tuple[bytes, dict[str, str]]:
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
        if not all(isinstance(header[name], str) for name in ("place", "root", "key")):
            raise fault
    except (ValueError, KeyError, TypeError, AttributeError):
        raise fault from None
    return front, header


def _binding(identity: uuid.UUID, place: str) -> bytes:
    return bind("hearth key bundle v1", identity, place)


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row in JSON's types."""
    out: dict[str, Any] = {}
    for name, value in row.items():
        if isinstance(value, datetime):
            out[name] = value.isoformat()
        elif isinstance(value, bytes | memoryview):
            out[name] = base64.b64encode(bytes(value)).decode()
        else:
            out[name] = str(value) if isinstance(value, uuid.UUID) else value
    return out


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
