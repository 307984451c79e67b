"""Root keys in files with mode 0600: 32 random bytes each. For one machine; the HSM is for the rest.

Further root keys, made by a rotation, lie beside the first one. A root key never encrypts by itself: the key that wraps
is derived from it with HKDF-SHA256 (RFC 5869), and wrapping is XChaCha20-Poly1305.
"""

from __future__ import annotations

import hashlib
import secrets
import stat
from collections.abc import Mapping
from pathlib import Path

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from security import xchacha
from security.errors import KeyFileError, UnknownRootKey, WrongKey
from security.rootkey import KEY, ensure_root_key, key_files
from security.secret import Key

WRAPPING = b"hearth root wrapping v1"
NAMING = b"hearth root name v1"


class KeyFileSource:
    """The key file at `path` and those beside it that rotations made (`root.key`, `root-1f3a….key`)."""

    kind = "file"

    def __init__(self, path: Path) -> None:
        self.path = path

    def roots(self) -> list[str]:
        return list(self._files()[0])

    def create(self) -> str:
        path = self.path
        if path.exists():
            path = path.with_name(f"{path.stem}-{secrets.token_hex(4)}{path.suffix}")
        ensure_root_key(path)
        return name(read_root(path))

    def wrap(self, root: str, key: Key, aad: bytes) -> bytes:
        with self._wrapping(root) as wrapping:
            return xchacha.seal_box(wrapping.value, key.value, aad)

    def unwrap(self, root: str, wrapped: bytes, aad: bytes) -> Key:
        try:
            with self._wrapping(root) as wrapping:
                return Key(xchacha.open_box(wrapping.value, wrapped, aad))
        except xchacha.InvalidTag:
            raise WrongKey(
                f"A key wrapped by the root key {root} was changed or belongs elsewhere. Nothing was written. "
                "Restore the keyring from its bundle."
            ) from None

    def describe(self) -> Mapping[str, str]:
        return {"kind": self.kind, "file": str(self.path)}

    def file_of(self, root: str) -> Path:
        """Return the file that holds the root key, for telling a person what to back up."""
        files, faults = self._files()
        if root in files:
            return files[root]
        if faults:  # the one that is looked for may be the one that can't be read
            raise faults[0]
        raise UnknownRootKey(
            f"The root key {root} is not among the key files in {self.path.parent}. What it protects can't be read "
            "now; nothing was written. Put its file back from your backup."
        )

    def _files(self) -> tuple[dict[str, Path], list[KeyFileError]]:
        """Return what can be read, and why other files can't: a stray file beside stops nobody who needs another."""
        found: dict[str, Path] = {}
        faults: list[KeyFileError] = []
        for path in key_files(self.path):
            try:
                found.setdefault(name(read_root(path)), path)
            except KeyFileError as error:
                if path == self.path:
                    raise
                faults.append(error)
        return found, faults

    def _wrapping(self, root: str) -> Key:
        return derive(read_root(self.file_of(root)), WRAPPING)


def name(root: bytes) -> str:
    """Return a root key's id: a hash that tells keys apart and nothing about them."""
    return f"{KeyFileSource.kind}:{hashlib.sha256(NAMING + root).hexdigest()[:16]}"


def derive(root: bytes, purpose: bytes) -> Key:
    """Return the key for one purpose of a root key."""
    return Key(HKDF(algorithm=SHA256(), length=KEY, salt=None, info=purpose).derive(root))


def read_root(path: Path) -> bytes:
    """Return the root key in a file, or raise `KeyFileError` with what to do."""
    try:
        mode = path.stat().st_mode
        root = path.read_bytes()
    except OSError as error:
        raise KeyFileError(f"The root key {path} can't be read: {error.strerror}. Restore it from a backup.") from None
    if stat.S_IMODE(mode) & 0o077:
        raise KeyFileError(f"The root key {path} can be read by others. Run: chmod 600 {path}")
    if (length := len(root)) != KEY:
        del root  # a page that shows a traceback's variables has nothing to show
        raise KeyFileError(f"The root key {path} is {length} bytes long, not {KEY}. Restore it from your backup.")
    return root
