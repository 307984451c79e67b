"""Renewing a lease in the background while its work runs."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from django.db import DatabaseError, connection

log = logging.getLogger(__name__)


@contextmanager
def kept(
    renew: Callable[[], bool], *, name: str, every: float, limit: float, lost: Callable[[], None] = lambda: None
) -> Iterator[None]:
    """Call `renew` each `every` seconds while the block runs, for `limit` seconds at most: what hangs must come free.

    `lost` is called once when `renew` returns False, or the limit is reached. Both are called in a thread of their own.
    """
    finished = threading.Event()

    def keep() -> None:
        try:
            for _ in range(int(limit / every)):
                if finished.wait(every):
                    return
                if not _renewed(renew, name):
                    break
            lost()
        finally:
            connection.close()

    keeper = threading.Thread(target=keep, name=f"lease-{name}", daemon=True)
    keeper.start()
    try:
        yield
    finally:
        finished.set()
        keeper.join()


def _renewed(renew: Callable[[], bool], name: str) -> bool:
    try:
        return renew()
    except DatabaseError:
        # The next round may reach the database again; if not, the lease ends and another worker goes on.
        log.warning("The lease of %s was not renewed.", name, exc_info=True)
        connection.close()
        return True
