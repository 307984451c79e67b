"""docs/key-bundles.md is enough to open a bundle: a reader that was written from it, without Hearth's own code."""

from __future__ import annotations

import base64
import json
import re
import struct
import uuid
import zlib
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from django.conf import settings

from security.keyring import bundle, deks
from security.keyring.deks import Context
from security.models import PLATFORM

PAGE = Path(__file__).resolve().parents[2] / "docs" / "key-bundles.md"
OWNER, SERVER = uuid.uuid4(), uuid.uuid4()


def bind(label: str, *parts: Any) -> bytes:
    out = b""
    for part in (label, *parts):
        raw = str(part).encode()
        out += b"\xff\xff\xff\xff" if part is None else struct.pack(">I", len(raw)) + raw
    return out


def unbox(key: bytes, box: bytes, aad: bytes) -> bytes:
    """XChaCha20-Poly1305 (draft-irtf-cfrg-xchacha-03): HChaCha20 is a block less its first state."""
    nonce, rest = box[:24], box[24:]
    words = struct.unpack("<16I", Cipher(ChaCha20(key, nonce[:16]), None).encryptor().update(bytes(64)))
    first = struct.unpack("<4I", b"expand 32-byte k") + struct.unpack("<4I", nonce[:16])
    subkey = [(a - b) % 2**32 for a, b in zip(words[:4] + words[12:], first, strict=True)]
    return ChaCha20Poly1305(struct.pack("<8I", *subkey)).decrypt(bytes(4) + nonce[16:], rest, aad)


def read(data: bytes, file: bytes) -> dict[str, bytes]:
    """Return every data key in a bundle by its id."""
    found = re.search(r"no salt, info `([^`]+)`", PAGE.read_text(encoding="utf-8"))
    assert found is not None
    root = HKDF(SHA256(), 32, None, found[1].encode()).derive(file)
    assert data[:4] == b"HKB1"
    end = 8 + struct.unpack(">I", data[4:8])[0]
    header = json.loads(data[8:end])
    key = unbox(root, base64.b64decode(header["key"]), bind("hearth key bundle v1", header["bundle"], header["place"]))
    rows = json.loads(zlib.decompress(unbox(key, data[end:], data[:end])))
    keks = {
        row["id"]: unbox(
            root, base64.b64decode(row["wrapped"]), bind("hearth kek v1", row["id"], row["owner"], row["version"])
        )
        for row in rows["keks"]
    }
    names = ("id", "kek_id", "owner", "purpose", "server", "object")
    return {
        row["id"]: unbox(
            keks[row["kek_id"]],
            base64.b64decode(row["wrapped"]),
            bind("hearth dek v1", *(row[name] for name in names), int(row["shared"])),
        )
        for row in rows["data_keys"]
    }


@pytest.mark.django_db
def test_the_page_is_enough() -> None:
    contexts = (Context(OWNER, "backup.wal", SERVER, "wal/ü"), Context(OWNER, "backup.base"), Context(PLATFORM, "x.y"))
    made = {str(opened.id): bytes(opened.key.value) for opened in map(deks.new_data_key, contexts)}
    shared = deks.shared_data_key(Context(OWNER, "column:a.b"))
    made[str(shared.id)] = bytes(shared.key.value)
    data = bundle.build("region-one")
    assert read(data, Path(settings.HEARTH["HEARTH_KEY_FILE"]).read_bytes()) == made


def test_the_page_names_every_field_of_the_header() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for name in ("bundle", "place", "created", "root", "key", *vars(bundle.Part())):
        assert f"`{name}`" in text, name
    for table in bundle.TABLES:
        assert f"`{table}`" in text, table
