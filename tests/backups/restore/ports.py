"""Ports for programs that are started again on the same one: below those that connections to others get for a while."""

from __future__ import annotations

import os
import socket

FIRST, COUNT = 20_000, 10_000


def steady(count: int) -> list[int]:
    """Return that many loopback ports nobody listens on. Each process looks from a place of its own."""
    found: list[int] = []
    for step in range(COUNT):
        port = FIRST + (os.getpid() * 37 + step) % COUNT
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        found.append(port)
        if len(found) == count:
            return found
    raise OSError("every port is taken")
