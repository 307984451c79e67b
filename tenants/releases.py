"""The Synapse versions that Hearth offers, and which way a server may go between them. Imports no Django.

`schema` and `compat` are SCHEMA_VERSION and SCHEMA_COMPAT_VERSION of `synapse/storage/schema/__init__.py` in each
package on PyPI. A version writes its `compat` into the database, and at start a version refuses a database whose
`compat` is above its own `schema` (`synapse/storage/prepare_database.py`). So going back is possible down to the
oldest version whose `schema` still reaches it:
https://element-hq.github.io/synapse/latest/development/database_schema.html#full-schema-dumps

A new version is added here and gets its lock file by `python -m provisioning.providers.local.relock`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Release:
    """One version of Synapse. One that is not `offered` still runs where it runs, but nobody can choose it."""

    version: str
    schema: int
    compat: int
    offered: bool = True


class ReleaseRefused(ValueError):
    """A version that can't be had; the text is a sentence for a person."""


RELEASES: tuple[Release, ...] = (
    Release("1.163.2", schema=94, compat=84),
    Release("1.156.0", schema=94, compat=84),
    Release("1.149.1", schema=93, compat=84),
    Release("1.139.2", schema=92, compat=84),
    # Too old to sell; it is the last one before the schema that all the others need.
    Release("1.98.0", schema=83, compat=83, offered=False),
)


def newest() -> Release:
    """Return the version that new servers get."""
    return RELEASES[0]


def find(version: str) -> Release:
    """Return the release of that version, or raise `ReleaseRefused`."""
    for release in RELEASES:
        if release.version == version:
            return release
    known = ", ".join(release.version for release in RELEASES if release.offered)
    raise ReleaseRefused(f"Hearth does not offer Synapse {version}. Choose one of {known}.")


def check_upgrade(current: str, wanted: str) -> None:
    """Return if a server may go from `current` to `wanted`, else raise `ReleaseRefused` with the reason."""
    before, after = find(current), find(wanted)
    if before == after:
        raise ReleaseRefused(f"The server already runs Synapse {current}.")
    if not after.offered:
        raise ReleaseRefused(f"Hearth no longer offers Synapse {wanted}{_across(before, after)} Nothing was changed.")
    if _closed(before, after):
        raise ReleaseRefused(
            f"The server can't go back from Synapse {current} to {wanted}{_across(before, after)} "
            "Nothing was changed. To go back, restore a backup from before the upgrade."
        )


def _closed(before: Release, after: Release) -> bool:
    return RELEASES.index(after) > RELEASES.index(before) and after.schema < before.compat


def _across(before: Release, after: Release) -> str:
    if not _closed(before, after):
        return "."
    needs = f"since {before.version} the database needs schema {before.compat} or later"
    return f": {needs}, and {after.version} knows only {after.schema}."


def for_database(used: Iterable[str]) -> Release:
    """Return what runs on a database on which the versions `used` ran: the newest of them, or the next one there is.

    A database from a backup may be of a version that is no longer here; a later one brings its schema up to date.
    Raises `ReleaseRefused` where there is none.
    """
    wanted = max(used, key=_number)
    later = [release for release in RELEASES if _number(release.version) >= _number(wanted)]
    if not later:
        raise ReleaseRefused(
            f"It was written by Synapse {wanted}, and Hearth has nothing as new as that. Ask whoever runs this Hearth."
        )
    return min(later, key=lambda release: _number(release.version))


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) if part.isdigit() else 0 for part in version.split("."))
