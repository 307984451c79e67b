"""A caller's certificate, key and trust as files, and their renewal in place. Imports no Django.

Certificate and key may be one file; then it is replaced in one step. Where they are two, the next key lies beside the
present one (`<key>.next`) until the certificate for it is there: wherever a renewal is cut off, one key fits.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

from security.transport.errors import CertificateError
from security.transport.requests import certificate_request, private_pem
from security.transport.tls import Material

Signature = tuple[tuple[int, int, int], ...]


@dataclass(frozen=True)
class Files:
    """Where they lie. The key's file is made with mode 0600."""

    certificate: Path
    key: Path
    trust: Path

    @property
    def _next(self) -> Path:
        return self.key.with_name(f"{self.key.name}.next")

    @property
    def signature(self) -> Signature:
        """Return what changes when one of the files does. Raises `CertificateError` when one is missing."""
        try:
            found = [path.stat() for path in (self.certificate, self.key, self.trust)]
        except OSError as error:
            raise self._missing(error) from None
        return tuple((one.st_ino, one.st_mtime_ns, one.st_size) for one in found)

    def read(self) -> Material:
        """Return what they hold, or raise `CertificateError`; a renewal that was cut off is brought to its end."""
        try:
            chain, trust = (path.read_text(encoding="utf-8") for path in (self.certificate, self.trust))
            try:
                return Material.read(chain, self.key.read_text(encoding="utf-8"), trust)
            except CertificateError:
                if not self._next.exists():
                    raise
                material = Material.read(chain, self._next.read_text(encoding="utf-8"), trust)
                self._next.replace(self.key)
                return material
        except (OSError, UnicodeDecodeError) as error:
            raise self._missing(error) from None

    def request(self) -> tuple[bytes, str]:
        """Return a request for a new key (PEM), and that key."""
        key = ec.generate_private_key(ec.SECP256R1())
        return certificate_request(key), private_pem(key)

    def install(self, chain: str, key: str, trust: str) -> Material:
        """Put a new certificate in place; raises `CertificateError` and changes nothing when they don't fit."""
        material = Material.read(chain, key, trust)
        try:
            write(self.trust, trust)
            if self.certificate == self.key:
                write(self.key, f"{key.strip()}\n{chain}")
            else:
                write(self._next, key)
                write(self.certificate, chain)
                self._next.replace(self.key)
        except OSError as error:
            raise CertificateError(
                f"A new certificate could not be stored: {error.strerror} ({error.filename}). The present one is used."
            ) from None
        return material

    def _missing(self, error: Exception) -> CertificateError:
        return CertificateError(f"The certificate {self.certificate}, its key or its trust can't be read: {error}.")


def write(path: Path, text: str) -> None:
    """Replace a file in one step; after a crash it holds the old text or the new one.

    It belongs to whom the folder belongs to (root writes for Prometheus' user), who alone can read it.
    """
    new, folder = path.with_name(f".{path.name}.new"), path.parent.stat()
    new.unlink(missing_ok=True)
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        with contextlib.suppress(PermissionError):  # only root may give away
            os.fchown(file.fileno(), folder.st_uid, folder.st_gid)
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
