"""What an engine is told to give out of a backup."""

from __future__ import annotations

from typing import Any

from backups.exporting.models import Export
from backups.restoring.models import Restore


def is_latest(row: Restore) -> bool:
    """Return whether an export is of the latest that the store has, rather than of a certain second."""
    return row.mode == Restore.Mode.EXPORT and Export.objects.filter(restore=row, latest=True).exists()


def asked(row: Restore) -> dict[str, Any]:
    """Return `Recovery.export` of a restore; empty for those that bring a server back."""
    if row.mode != Restore.Mode.EXPORT:
        return {}
    export = Export.objects.get(restore=row)
    return {
        "what": export.what,
        "room": export.room,
        "tables": list(export.tables),
        "format": export.format,
        "archive": str(row.pk),
    }
