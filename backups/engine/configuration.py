"""A server's configuration in a restore point: homeserver.yaml, log.yaml, the signing key, as one tar.zst.

Which files, settings say: name in the archive to path. Imports no Django.
"""

from __future__ import annotations

import io
import os
import stat
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, cast

import zstandard

MOST_FILES = 100
LARGEST = 4 * 2**20
"""Bytes of one file; the largest real ones have some kilobytes."""
_PIECE = 1 << 20


class ConfigurationError(Exception):
    """A file of the configuration can't be kept or read back. The text is for a person."""


def collect(files: Mapping[str, str]) -> Iterator[bytes]:
    """Return the archive of `files` (name in it to path), in pieces. Raises `ConfigurationError`, before the first.

    The same files give the same bytes. Links are not followed: the engine may be root, and the folder is not its own.
    """
    if len(files) > MOST_FILES:
        raise ConfigurationError(f"There are {len(files)} files of configuration; {MOST_FILES} are the most.")
    packed = io.BytesIO()
    with (
        zstandard.ZstdCompressor().stream_writer(packed, closefd=False) as target,
        tarfile.open(fileobj=target, mode="w|", format=tarfile.PAX_FORMAT) as archive,
    ):
        for name, path in sorted(files.items()):
            data = _content(name, Path(path))
            member = tarfile.TarInfo(_checked(name))
            member.size, member.mode = len(data), 0o600
            archive.addfile(member, io.BytesIO(data))
    view = packed.getvalue()
    return (view[at : at + _PIECE] for at in range(0, len(view), _PIECE))


def read(pieces: Iterable[bytes | memoryview]) -> dict[str, bytes]:
    """Return the files of an archive by their names. Raises `ConfigurationError`; what `pieces` raises passes through.

    It is read to its end before anything is returned, so what the stream's last chunk says counts.
    """
    packed = b"".join(map(bytes, pieces))
    most = MOST_FILES * (LARGEST + 2 * tarfile.BLOCKSIZE)
    found: dict[str, bytes] = {}
    try:
        reader = zstandard.ZstdDecompressor(max_window_size=1 << 27).decompressobj()
        plain = reader.decompress(packed)
        if not reader.eof or reader.unused_data:
            raise ConfigurationError("The archive of the configuration has no end, or more than one.")
        if len(plain) > most:
            raise ConfigurationError("The archive of the configuration is larger than one can be. Nothing was taken.")
        with tarfile.open(fileobj=io.BytesIO(plain), mode="r:") as archive:
            for member in archive:
                if not member.isreg():
                    raise ConfigurationError(f"In the archive of the configuration {member.name!r} is no plain file.")
                found[_checked(member.name)] = cast("IO[bytes]", archive.extractfile(member)).read()
    except (zstandard.ZstdError, tarfile.TarError) as error:
        raise ConfigurationError(f"The archive of the configuration can't be read: {error}.") from None
    return found


def signing_key_id(line: bytes | str) -> str:
    """Return the id `ed25519:a_XXXX` of a signing key file, as Synapse writes it. Raises `ConfigurationError`."""
    text = line.decode("ascii", "replace") if isinstance(line, bytes) else line
    keys = [words for each in text.splitlines() if (words := each.split())]
    if len(keys) != 1 or len(keys[0]) != 3 or keys[0][0] != "ed25519":
        raise ConfigurationError("The signing key is not one line `ed25519 <version> <base64>`.")
    return f"ed25519:{keys[0][1]}"


def assert_signing_key(files: Mapping[str, bytes], wanted: str) -> str:
    """Return the name of the file that holds the signing key `wanted` (`ed25519:a_XXXX`), or raise.

    Synapse silently makes a new key where the file is missing; other servers would not know the restored one.
    """
    for name, data in files.items():
        try:
            if signing_key_id(data) == wanted:
                return name
        except ConfigurationError:
            continue
    raise ConfigurationError(
        f"The signing key {wanted} is not in this restore point's configuration. With another key other homeservers "
        "would refuse this one. Nothing was started; take another restore point, or the key from Hearth's own copy."
    )


def _content(name: str, path: Path) -> bytes:
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(handle, "rb") as file:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise ConfigurationError(f"{path} is no plain file, so {name} can't be kept. Nothing was stored.")
            data = file.read(LARGEST + 1)
    except OSError as error:
        raise ConfigurationError(
            f"{path} can't be read ({error.strerror}), so {name} can't be kept, and a restore point without it would "
            "not start. Nothing was stored. Correct the path or its permissions."
        ) from None
    if len(data) > LARGEST:
        raise ConfigurationError(f"{path} has more than {LARGEST} bytes; that is no file of configuration.")
    return data


def _checked(name: str) -> str:
    if not name or name.startswith("/") or ".." in name.split("/") or len(name) > 200 or "\0" in name:
        raise ConfigurationError(f"{name!r} is no name of a file in the archive of the configuration.")
    return name
