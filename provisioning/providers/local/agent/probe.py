"""Ask a homeserver on loopback, and its database, whether they answer."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

ENCRYPT = b"\x00\x00\x00\x08\x04\xd2\x16\x2f"
"""PostgreSQL's SSLRequest: answered with one byte by a new backend, before any sign-in."""
REQUEST = b"GET /_matrix/client/versions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


async def answers(port: int, *, seconds: float = 5.0) -> bool:
    """Tell whether `/_matrix/client/versions` gives 200 within `seconds`."""
    try:
        async with asyncio.timeout(seconds):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                writer.write(REQUEST)
                return (await reader.readline()).split()[1:2] == [b"200"]
            finally:
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()
    except (OSError, TimeoutError):
        return False


async def database_answers(socket: Path, *, seconds: float = 5.0) -> bool:
    """Tell whether a PostgreSQL takes connections on `socket`. It signs in nowhere and leaves no line in its log."""
    try:
        async with asyncio.timeout(seconds):
            reader, writer = await asyncio.open_unix_connection(str(socket))
            try:
                writer.write(ENCRYPT)
                return await reader.read(1) in (b"N", b"S")
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return False
