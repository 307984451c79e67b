"""Encrypted streams in 1 MiB chunks: XChaCha20-Poly1305 for database content, AES-256-GCM for files.

    key, context = DataKey.fresh(), Context(organisation=..., server=..., path=..., restore_point=...)
    for piece in encrypt(pieces, key, context, Cipher.AES_256_GCM): upload(piece)
    decrypt_to_path(download, path, key, context)

Iterators (`encrypt`, `decrypt`), file objects (`EncryptingWriter`, `EncryptingReader`, `DecryptingReader`,
`SeekableReader`) and paths. Anything that is not exactly what was encrypted for exactly this object raises a
`StreamError`. The format is specified byte by byte in docs/backup-format.md. Imports no Django.
"""

from security.streams.chunks import Opener, Sealer
from security.streams.ciphers import Cipher
from security.streams.context import Context, DataKey
from security.streams.errors import (
    BadContext,
    Corrupted,
    StreamError,
    TooLong,
    Truncated,
    Unfinished,
    UnknownFormat,
    WrongContext,
    WrongKey,
)
from security.streams.files import DecryptingReader, EncryptingReader, EncryptingWriter, SeekableReader
from security.streams.flow import decrypt, encrypt
from security.streams.header import CHUNK_SIZE, HEADER_SIZE, SEALED_SIZE, Header
from security.streams.paths import decrypt_to_path, encrypt_to_path

__all__ = [
    "CHUNK_SIZE",
    "HEADER_SIZE",
    "SEALED_SIZE",
    "BadContext",
    "Cipher",
    "Context",
    "Corrupted",
    "DataKey",
    "DecryptingReader",
    "EncryptingReader",
    "EncryptingWriter",
    "Header",
    "Opener",
    "Sealer",
    "SeekableReader",
    "StreamError",
    "TooLong",
    "Truncated",
    "Unfinished",
    "UnknownFormat",
    "WrongContext",
    "WrongKey",
    "decrypt",
    "decrypt_to_path",
    "encrypt",
    "encrypt_to_path",
]
