"""The seam for the backup that is made before a server is deleted. The issue on backups fills it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

FinalBackup = Callable[[Mapping[str, Any]], Awaitable[str]]
"""Takes a MatrixServer that is being deleted. Returns nothing once its last backup is made, else what is waited for.
Called again until it returns nothing; must not start a second backup when one is under way."""


async def none(_server: Mapping[str, Any]) -> str:
    """Make no backup."""
    return ""
