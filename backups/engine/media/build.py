"""The media side of an engine, as its settings say. Imports no Django."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from backups.engine import names
from backups.engine.keys import Keys
from backups.engine.media.run import Media
from backups.engine.media.scan import DiskSource, Source
from backups.engine.objects import Vault
from backups.engine.progress import Progress
from backups.engine.settings import Settings, SettingsError
from backups.engine.stores.opening import opened

PURPOSE = "backup.media"
KEY_SIZE = 32


def open_media(
    settings: Settings, vault: Vault, keys: Keys, progress: Progress, stopped: Callable[[], bool]
) -> Media | None:
    """Return what backs up the media of these settings, None where there are none. Raises `SettingsError`."""
    source = _source(settings)
    if source is None:
        return None
    return Media(
        vault=vault,
        source=source,
        state=Path(settings.state),
        name_key=name_key(Path(settings.name_key_file)),
        key=lambda run: keys.once(PURPOSE, names.media_run(run)),
        uploads=settings.policy.uploads,
        stopped=stopped,
        progress=progress,
    )


def _source(settings: Settings) -> Source | None:
    if settings.media_bucket is not None:
        from backups.engine.media.bucket import BucketSource  # noqa: PLC0415 (what is not used is not imported)

        return BucketSource(opened(settings.media_bucket))
    return DiskSource(Path(settings.media)) if settings.media else None


def name_key(path: Path) -> bytes:
    """Return the key that media's contents are known by. Raises `SettingsError`."""
    try:
        found = path.read_bytes()
    except OSError as error:
        raise SettingsError(f"The key of media's names, {path}, can't be read ({error.strerror}).") from None
    if len(found) != KEY_SIZE:
        raise SettingsError(f"The key of media's names, {path}, has {len(found)} bytes and not {KEY_SIZE}.")
    return found
