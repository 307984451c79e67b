"""How Hearth reaches PostgreSQL and Redis: plain on this machine, verified TLS 1.3 to every other.

The two addresses say where, `HEARTH_DATABASE_*` and `HEARTH_REDIS_*` say whom to trust, and nothing else does: libpq's
own variables and service files, and what a Redis client would read from an address, decide nothing here. An address
that asks for less than verified TLS to another host stops the start. Imports no Django: beat is small because of that.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from config.connections.database import Database
from config.connections.redisurl import Redis


def check(settings: Mapping[str, Any]) -> None:
    """Raise `ImproperlyConfigured` with a sentence where the settings of a connection can't be meant."""
    Database.of(settings)
    Redis.of(settings)
