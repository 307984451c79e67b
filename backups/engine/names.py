"""Where each object of one server's backups lies, below the store's prefix. Imports no Django.

    points/<point>                          the manifest of a restore point, written last
    points-of/<point>/base.tar.zst          its base backup of the database
    points-of/<point>/configuration.tar.zst configuration and signing key
    lines/<line>/wal/<segment>              a whole WAL segment, compressed
    lines/<line>/wal/<segment>.<from>-<to>  a piece of a segment that is still being written
    lines/<line>/wal/<timeline>.history     a timeline's history file
    lines/<line>/moments/<moment>           what there was to restore at a moment: the chain of WAL and media
    media-runs/<run>                        the manifest of a media run, written last: which objects it needs
    media/<run>/index                       which media files there are: what changed since the run before, or all
    media/<run>/known                       with an index of all: which contents are stored where, for the engine alone
    media/<run>/<number>                    the contents of media files, many small ones in one object
    expiry/<id>                             what expiry found unneeded, and removes a day later
    exports/<export>/<attempt>.tar          what an owner asked for in open formats: no backup needs it, none names it

A **line** is an uninterrupted history of one database: what one replication slot has given without a gap. Its ids,
those of points, moments and runs begin with their UTC time, so a listing is in order of time.
"""

from __future__ import annotations

import os
import re
from datetime import UTC, datetime

POINTS = "points/"
PARTS = "points-of/"
EXPIRY = "expiry/"
EXPORTS = "exports/"
EXPORT_PURPOSE = "backup.export"
"""Of the data keys that seal archives of exports."""
LINES = "lines/"
MEDIA = "media/"
MEDIA_RUNS = "media-runs/"
SEGMENT_SIZE = 16 * 2**20
_ID = re.compile(r"\d{8}t\d{6}z-[0-9a-f]{8}")
_SEGMENT = re.compile(r"[0-9a-f]{24}")
_PIECE = re.compile(r"(?P<segment>[0-9a-f]{24})(?:\.(?P<begin>[0-9a-f]{8})-(?P<end>[0-9a-f]{8}))?")


def new_id(now: datetime | None = None) -> str:
    """Return a new id of a point, line, moment or run."""
    moment = (now or datetime.now(UTC)).astimezone(UTC)
    return f"{moment:%Y%m%dt%H%M%Sz}-{os.urandom(4).hex()}"


def time_of(identity: str) -> datetime:
    """Return when an id was made, in UTC, to the second. Raises `ValueError`."""
    if not _ID.fullmatch(identity):
        raise ValueError(f"{identity!r} is no id of a restore point, line, moment or run.")
    return datetime.strptime(identity[:16], "%Y%m%dt%H%M%Sz").replace(tzinfo=UTC)


def point(identity: str) -> str:
    return f"{POINTS}{identity}"


def base(identity: str) -> str:
    return f"{PARTS}{identity}/base.tar.zst"


def configuration(identity: str) -> str:
    return f"{PARTS}{identity}/configuration.tar.zst"


def wal(line: str, segment: str, begin: int = 0, end: int = SEGMENT_SIZE) -> str:
    """Return the name of bytes `begin` to `end` of a WAL segment, named as PostgreSQL does (24 hex digits)."""
    segment = segment.lower()
    if not _SEGMENT.fullmatch(segment):
        raise ValueError(f"{segment!r} is no WAL segment.")
    piece = "" if (begin, end) == (0, SEGMENT_SIZE) else f".{begin:08x}-{end:08x}"
    return f"{LINES}{line}/wal/{segment}{piece}"


def history(line: str, timeline: int) -> str:
    return f"{LINES}{line}/wal/{timeline:08x}.history"


def moment(line: str, identity: str) -> str:
    return f"{LINES}{line}/moments/{identity}"


def media_run(run: str) -> str:
    return f"{MEDIA_RUNS}{run}"


def media_known(run: str) -> str:
    return f"{MEDIA}{run}/known"


def media_index(run: str) -> str:
    return f"{MEDIA}{run}/index"


def media(run: str, number: int) -> str:
    return f"{MEDIA}{run}/{number:06d}"


def exports(identity: str) -> str:
    """Return below which all archives of one export lie: each attempt writes its own."""
    return f"{EXPORTS}{identity}/"


def is_contents(name: str) -> bool:
    """Return whether an object holds contents of media files."""
    return name.startswith(MEDIA) and name.rsplit("/", 1)[-1].isdigit()


def piece_of(name: str) -> tuple[str, int, int] | None:
    """Return a WAL object's segment (24 digits, as PostgreSQL writes them), first byte and end; else None."""
    found = _PIECE.fullmatch(name.rsplit("/", 1)[-1])
    if found is None or "/wal/" not in name:
        return None
    begin, end = found["begin"], found["end"]
    return found["segment"].upper(), int(begin, 16) if begin else 0, int(end, 16) if end else SEGMENT_SIZE
