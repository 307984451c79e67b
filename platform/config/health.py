"""`/healthz` says that the web server is alive; `/readyz` whether Hearth can do its work, with each part's reason.

Both need no sign-in and tell nothing that is secret. Migrations are compared only until they are complete: they can't
become unapplied while this process runs.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import redis
from django.conf import settings
from django.db import DatabaseError, connection
from django.db.migrations.executor import MigrationExecutor
from django.http import HttpRequest, JsonResponse
from django.utils import timezone
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from config import internal
from config.connections.explain import explain
from config.schedule import HEARTBEAT, HEARTBEAT_FRESH
from provisioning.models import Heartbeat

Check = Callable[[], str]
_migrated = threading.Event()
_last: tuple[float, dict[str, str]] = (0.0, {})
KEEP = 0.5
"""Seconds that one answer serves for all who ask: a flood of probes costs two rounds a second."""


@never_cache
@require_safe
def healthz(request: HttpRequest) -> JsonResponse:  # noqa: ARG001 (a view)
    """Answer 200 whenever the process can answer at all."""
    return JsonResponse({"status": "alive"})


@never_cache
@require_safe
def readyz(request: HttpRequest) -> JsonResponse:  # noqa: ARG001 (a view)
    """Answer 200 when every part works, else 503; the reason of each part is "ok" or a sentence."""
    parts = check_all()
    ready = all(reason == "ok" for reason in parts.values())
    return JsonResponse({"status": "ready" if ready else "not ready", "checks": parts}, status=200 if ready else 503)


def check_all() -> dict[str, str]:
    """Return each part's reason, at most half a second old."""
    global _last  # noqa: PLW0603 (one small memory for all threads; a torn read is impossible, a lost write harmless)
    at, parts = _last
    if not parts or time.monotonic() - at > KEEP:
        parts = {name: check() for name, check in CHECKS.items()}
        _last = (time.monotonic(), parts)
    return parts


def forget() -> None:
    """Have the next answer checked anew."""
    global _last  # noqa: PLW0603 (as above)
    _last = (0.0, {})
    _migrated.clear()


def _database() -> str:
    try:
        with connection.cursor() as cursor:
            cursor.execute("select 1")
    except DatabaseError as error:
        return f"The database does not answer. {explain(error, 'HEARTH_DATABASE')}".strip()
    return "ok"


def _broker() -> str:
    try:
        options = {"socket_timeout": 2, "socket_connect_timeout": 2, **settings.REDIS_OPTIONS}
        with redis.Redis.from_url(settings.REDIS_URL, **options) as client:
            client.ping()
    except (redis.RedisError, OSError) as error:
        return f"Redis does not answer. Work goes on when it is back. {explain(error, 'HEARTH_REDIS')}".strip()
    return "ok"


def _migrations() -> str:
    if _migrated.is_set():
        return "ok"
    try:
        executor = MigrationExecutor(connection)
        waiting = executor.migration_plan(executor.loader.graph.leaf_nodes())
    except DatabaseError:
        return "Unknown: the database does not answer."
    if waiting:
        return f"{len(waiting)} migrations are not applied. Run: manage.py migrate"
    _migrated.set()
    return "ok"


def _beat() -> str:
    try:
        seen = Heartbeat.objects.filter(name=HEARTBEAT).values_list("at", flat=True).first()
    except DatabaseError:
        return "Unknown: the database does not answer."
    if seen is None:
        return "Beat has never run here."
    age = (timezone.now() - seen).total_seconds()
    if age > HEARTBEAT_FRESH:
        return f"Beat was last seen {age:.0f} seconds ago; nothing is done by the clock."
    return "ok"


CHECKS: dict[str, Check] = {
    "database": _database,
    "broker": _broker,
    "migrations": _migrations,
    "beat": _beat,
    "internal listener": internal.state,
}
