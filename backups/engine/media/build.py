"""The media side of an engine, as its settings say. Imports no Django."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from backups.engine import names
from backups.engine.keys import Keys
from backups.engine.media.run import Media
from backups.engine.media.scan import DiskSource
from backups.engine.objects import Vault
from backups.engine.progress import Progress
from backups.engine.settings import Settings, SettingsError

PURPOSE = "backup.media"
KEY_SIZE = 32


def open_media(
    settings: Settings, vault: Vault, keys: Keys, progress: Progress, stopped: Callable[[], bool]
) -> Media | None:
    """Return what backs up the media of these settings, None where there are none. Raises `SettingsError`."""
    if not settings.media:
        return None
    return Media(
        vault=vault,
        source=DiskSource(Path(settings.media)),
        state=Path(settings.state),
        name_key=name_key(Path(settings.name_key_file)),
        key=lambda run: keys.once(PURPOSE, names.media_run(run)),
        uploads=settings.policy.uploads,
        stopped=stopped,
        progress=progress,
    )


def name_key(path: Path) -> bytes:
    """Return the key that media's contents are known by. Raises `SettingsError`."""
    try:
        found = path.read_bytes()
    except OSError as error:
        raise SettingsError(f"The key of media's names, {path}, can't be read ({error.strerror}).") from None
    if len(found) != KEY_SIZE:
        raise SettingsError(f"The key of media's names, {path}, has {len(found)} bytes and not {KEY_SIZE}.")
    return found
