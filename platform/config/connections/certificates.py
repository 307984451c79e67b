"""The files that say whom to trust and who we are, checked at the start and read anew by each connection."""

from __future__ import annotations

import ssl
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from django.core.exceptions import ImproperlyConfigured


@dataclass(frozen=True)
class Files:
    """Paths in PEM: the authorities that may vouch for the server, and a client certificate with its key, or ""."""

    ca: str
    certificate: str
    key: str

    @classmethod
    def of(cls, settings: Mapping[str, Any], prefix: str) -> Files:
        """Return the files that the settings `<prefix>_CA`, `_CERTIFICATE` and `_KEY` name, once they were looked at.

        Raises `ImproperlyConfigured` where one can't be used.
        """
        ca, certificate, key = (settings[f"{prefix}_{name}"] for name in ("CA", "CERTIFICATE", "KEY"))
        if bool(certificate) != bool(key):
            given, missing = ("CERTIFICATE", "KEY") if certificate else ("KEY", "CERTIFICATE")
            raise ImproperlyConfigured(
                f"{prefix}_{given} is set and {prefix}_{missing} is not. A client certificate needs both. "
                "Nothing was started."
            )
        if ca:
            _try(f"{prefix}_CA", ca, lambda: ssl.create_default_context(cafile=ca))
        if certificate:
            _refuse_open(f"{prefix}_KEY", Path(key))
            _try(f"{prefix}_CERTIFICATE with its key", certificate, lambda: client_context(certificate, key))
        return cls(ca, certificate, key)


def client_context(certificate: str = "", key: str = "") -> ssl.SSLContext:
    """Return a context that accepts TLS 1.3 only, trusts nobody yet, and checks the server's name."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    if certificate:
        # An encrypted key is refused: OpenSSL would otherwise ask at the terminal.
        context.load_cert_chain(certificate, key, password="")
    return context


def _try(what: str, path: str, load: Any) -> None:
    try:
        load()
    except ssl.SSLError:
        fault = "holds no such thing in PEM, or a certificate and a key that do not belong together"
    except OSError as error:
        fault = f"can't be read: {error.strerror}"
    except ValueError:
        fault = "has a key that is encrypted"
    else:
        return
    raise ImproperlyConfigured(f"{what} names {path}, which {fault}. Nothing was started.")


def _refuse_open(name: str, path: Path) -> None:
    """Hold libpq's rule for private keys: 0600, or 0640 where root owns the file (as mounted secrets are)."""
    try:
        found = path.stat()
    except OSError as error:
        raise ImproperlyConfigured(
            f"{name} names {path}, which can't be read: {error.strerror}. Nothing was started."
        ) from None
    if stat.S_IMODE(found.st_mode) & (0o037 if found.st_uid == 0 else 0o077):
        raise ImproperlyConfigured(
            f"{name} names {path}, which others can read. Nothing was started. Run: chmod 600 {path}"
        )
