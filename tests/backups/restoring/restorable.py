"""A server that runs, and whose backups Hearth knows: rows as engines' reports write them."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

from django.utils import timezone

from backups import wiring
from backups.models import Line, RegionStores, Restore, RestorePoint, ServerBackups, Store
from provisioning import engine, services
from provisioning.models import Operation, Region
from provisioning.providers.base import Recovering
from tenants.models import Server
from tests.provisioning.fakes import ScriptedProvider

LINE = "20261120t000000z-00000000"
DONE: dict[str, Any] = {"last_commit": "2026-11-20T11:59:58.5+00:00", "point": "p"}


def make_restorable(server: Server, *, days: int = 2, version: str = "") -> Server:
    """Make a server, and backups of the last days with a restore point a day."""
    region = Region.objects.get(code=server.region)
    store = Store.objects.create(code="here", name="Here", kind="folder", folder="/var/backups/hearth")
    RegionStores.objects.create(region=region, first=store)
    made = services.reconcile(server.pk)
    assert made is not None
    assert engine.run(made.pk)
    now = timezone.now()
    Operation.objects.filter(pk=made.pk).update(created=now - timedelta(days=days + 1))
    wiring.ensure(server)
    ServerBackups.objects.filter(server=server).update(reported=now, until=now, line=LINE)
    Line.objects.create(server=server, identity=LINE, begun=now - timedelta(days=days), until=now)
    for day in range(days, 0, -1):
        add_point(server, now - timedelta(days=day), version)
    server.refresh_from_db()
    return server


def add_point(server: Server, at: datetime, version: str = "", **columns: Any) -> RestorePoint:
    fields = {"kind": "daily", "line": LINE, "stored_bytes": 10**6, "media_bytes": 10**6} | columns
    identity = f"{at.astimezone(UTC):%Y%m%dt%H%M%Sz}-{uuid.uuid4().hex[:8]}"
    version = version or server.version
    return RestorePoint.objects.create(server=server, identity=identity, at=at, synapse_version=version, **fields)


def hour_ago() -> datetime:
    return (timezone.now() - timedelta(hours=1)).replace(microsecond=0)


def look(operation: Operation, times: int = 1) -> Operation:
    """Let a worker look at the operation."""
    for _ in range(times):
        Operation.objects.filter(pk=operation.pk).update(run_after=timezone.now() - timedelta(seconds=1))
        engine.run(operation.pk)
    operation.refresh_from_db()
    return operation


def is_done(provider: ScriptedProvider, row: Restore, **result: Any) -> None:
    """Let the provider say that all of it is back."""
    told = Recovering(state="done", done_bytes=2000, total_bytes=2000, result=DONE | result)
    provider.recovered[str(row.instance)] = told


def settled(provider: ScriptedProvider, row: Restore) -> dict[str, Any]:
    """Return what the provider was told to settle, but for since when numbers count."""
    told = provider.recoveries[str(row.instance)].request["settle"]
    return {part: value for part, value in told.items() if part != "moment"}


def bring_back(provider: ScriptedProvider, row: Restore, operation: Operation | None = None) -> Operation:
    """Carry a restore (or a later operation about it) out to its end."""
    operation = look(operation or row.operation)
    is_done(provider, row)
    for _ in range(3):
        if operation.state in Operation.OPEN:
            look(operation)
    row.refresh_from_db()
    assert operation.state == "succeeded", (operation.error, log(operation))
    return operation


def log(operation: Operation) -> str:
    return "\n".join(operation.events.values_list("message", flat=True))
