"""Which TLS versions a router takes, by asking it for one at a time.

The first message is written here, because a TLS library of today can't offer what must be refused. A router that takes
the version answers with a ServerHello, another with an alert or by closing. Nothing further is said.
https://www.rfc-editor.org/rfc/rfc5246#section-7.4.1 https://www.rfc-editor.org/rfc/rfc8446#section-4.1.2
"""

from __future__ import annotations

import os
import socket
import struct

VERSIONS = {"1.0": 0x0301, "1.1": 0x0302, "1.2": 0x0303, "1.3": 0x0304}
TIMEOUT = 5.0
"""Seconds for each step of a probe."""
HANDSHAKE, SERVER_HELLO = 22, 2
_OLD = (
    0xC02B, 0xC02F, 0xC02C, 0xC030, 0xCCA9, 0xCCA8,  # ECDHE with AEADs, of 1.2
    0xC009, 0xC013, 0xC00A, 0xC014, 0x009C, 0x009D, 0x0033, 0x0039, 0x002F, 0x0035, 0x000A, 0x00FF,
)  # fmt: skip
_NEW = (0x1301, 0x1302, 0x1303)
_GROUPS = (0x001D, 0x0017, 0x0018, 0x0019)
_SIGNATURES = (0x0403, 0x0503, 0x0603, 0x0804, 0x0805, 0x0806, 0x0401, 0x0501, 0x0601, 0x0203, 0x0201)


def versions(address: str, name: str) -> list[str]:
    """Return the versions that are taken at `address` (host or host:port, else 443) for the host `name`, lowest first.

    Raises `OSError` when nothing answers there.
    """
    host, port = parted(address)
    return [text for text, number in VERSIONS.items() if _taken(host, port, name, number)]


def parted(address: str) -> tuple[str, int]:
    """Return host and port of `host`, `host:port`, `[v6]` or `[v6]:port`."""
    if address.startswith("["):
        host, _, rest = address[1:].partition("]")
        return host, int(rest.removeprefix(":") or 443)
    host, _, port = address.partition(":")
    return host, int(port or 443)


def _taken(host: str, port: int, name: str, version: int) -> bool:
    with socket.create_connection((host, port), TIMEOUT) as connection:
        try:
            connection.sendall(hello(name, version))
            said = b""
            while len(said) < 11 and (more := connection.recv(11 - len(said))):
                said += more
        except ConnectionError:
            return False
    if len(said) < 11 or said[0] != HANDSHAKE or said[5] != SERVER_HELLO:
        return False
    chosen = int.from_bytes(said[9:11], "big")
    # By 1.3 the field says 1.2, and only who understood the extension takes a hello that offers nothing else.
    return chosen == min(version, VERSIONS["1.2"])


def hello(name: str, version: int) -> bytes:
    """Return a ClientHello that offers exactly this version."""
    newest = version == VERSIONS["1.3"]
    ciphers = _list(_NEW if newest else _OLD)
    sni = _sized(b"\0" + _sized(name.encode("idna")))
    extensions = _extension(0, sni) + _extension(10, _list(_GROUPS)) + _extension(13, _list(_SIGNATURES))
    if newest:
        # No share of a key: the router answers by asking for one, which is enough to know.
        extensions += _extension(43, b"\x02" + struct.pack(">H", version)) + _extension(51, _sized(b""))
    else:
        extensions += _extension(11, b"\x01\x00")
    legacy = struct.pack(">H", min(version, VERSIONS["1.2"]))
    session = b"\x20" + os.urandom(32) if newest else b"\x00"
    body = legacy + os.urandom(32) + session + ciphers + b"\x01\x00" + _sized(extensions)
    handshake = b"\x01" + struct.pack(">I", len(body))[1:] + body
    return bytes([HANDSHAKE]) + b"\x03\x01" + _sized(handshake)


def _sized(content: bytes) -> bytes:
    return struct.pack(">H", len(content)) + content


def _list(numbers: tuple[int, ...]) -> bytes:
    return _sized(struct.pack(f">{len(numbers)}H", *numbers))


def _extension(number: int, content: bytes) -> bytes:
    return struct.pack(">H", number) + _sized(content)
