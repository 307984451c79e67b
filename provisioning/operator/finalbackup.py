"""The seam for the backup that is made before a server is deleted; `backups.Backups.final` fills it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

FinalBackup = Callable[[Mapping[str, Any]], Awaitable[str]]
"""Takes a MatrixServer that is being deleted. Returns nothing once its last backup is made, or can't be, else what is
waited for. Called again until it returns nothing; must not start a second backup when one is under way."""
