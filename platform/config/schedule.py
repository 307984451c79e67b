"""What runs by the clock, and the broker's address. Imports no Django: beat is small because of that.

Every entry only wakes a loop that looks for work in PostgreSQL; a message that waited longer than its interval is
worth nothing and expires.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qs, urlsplit

HEARTBEAT = "beat"
HEARTBEAT_EVERY = 5.0
HEARTBEAT_FRESH = 30.0
"""Seconds after which `/readyz` no longer believes that beat is alive."""
EVERY: dict[str, float] = {
    "provisioning.tasks.sweep": 2.0,
    "provisioning.tasks.observe": 5.0,
    "provisioning.tasks.prune_samples": 600.0,
    "backups.tasks.order_due": 30.0,
    "backups.tasks.look_due": 30.0,
    "backups.tasks.copy_due": 10.0,
    "backups.tasks.prove_due": 5.0,
    "backups.tasks.observe": 60.0,
    "backups.tasks.tidy_restores": 60.0,
    "notifications.tasks.deliver_due": 10.0,
    "notifications.tasks.prune": 600.0,
    "accounts.tasks.forget_old": 600.0,
    "security.tasks.rewrap_due": 30.0,
    "security.tasks.rotate_due": 600.0,
    "security.tasks.keep_bundles": 300.0,
    "security.transport.tasks.renew_authority": 600.0,
}


def schedule() -> dict[str, dict[str, Any]]:
    """Return Celery's `beat_schedule`."""
    return {
        name: {"task": name, "schedule": seconds, "options": {"expires": max(2 * seconds, 10.0)}}
        for name, seconds in EVERY.items()
    }


def broker_url(redis_url: str) -> str:
    """Return `redis_url` as Celery writes it: a socket is `redis+socket:///path?virtual_host=0` there."""
    parts = urlsplit(redis_url)
    if parts.scheme != "unix":
        return redis_url
    number = parse_qs(parts.query).get("db", ["0"])[0]
    return f"redis+socket://{parts.netloc}{parts.path}?virtual_host={number}"


TRANSPORT_OPTIONS: dict[str, Any] = {
    # A message whose worker died is delivered again after this long. Long work is safe: PostgreSQL holds the lease.
    "visibility_timeout": 300,
    "socket_connect_timeout": 3,
    # A page that wakes a worker waits as long as this for a Redis that hangs. (Workers wait 1 s for each message.)
    "socket_timeout": 5,
    "health_check_interval": 10,
}
