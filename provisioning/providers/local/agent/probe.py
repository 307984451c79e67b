"""Ask a homeserver on loopback whether it answers."""

from __future__ import annotations

import asyncio
import contextlib

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
