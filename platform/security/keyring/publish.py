"""Publish data keys: every place holds them in a key bundle, read back and found right, before a manifest names them.

A publish writes a small bundle of just these keys. `upkeep` writes the whole keyring once a day, and then removes the
small ones. A bundle is written down in the database before its bytes leave, so no copy of a key is ever unknown.
"""

from __future__ import annotations

import functools
import logging
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from django.conf import settings
from django.db import models, transaction
from django.db.models import Count, Max, Min
from django.db.models.functions import Now

from security.errors import BundleError, KeyGone, KeysChanged, NotPublished, SecurityError
from security.keyring import bundle, roots
from security.keyring.bundle import Part, Rows
from security.keyring.keks import TRIES
from security.keyring.places import SUFFIX, Errand, FolderPlace, Place, PlaceError
from security.keyring.recovery import MARGIN
from security.keyring.seams import seams
from security.models import BundleFile, DataKey, Erasure, KeyEncryptionKey, RootKey

logger = logging.getLogger(__name__)
SECONDS = 60.0
"""How long a place may take for one bundle."""
MOST = 20_000
"""Data keys in one bundle: some 8 MB in memory."""
Kind = BundleFile.Kind


def publish(data_key_ids: Iterable[uuid.UUID], *, seconds: float = SECONDS) -> None:
    """Return when every place holds a bundle with these data keys. Call it before a manifest names them.

    Raises `NotPublished` where one place does not hold it, whatever the others do, and `KeyGone` for a key that is not
    in the keyring. Calling it again is always right. Call it outside of a transaction: what is not committed could be
    taken back after it was published.
    """
    wanted = sorted(set(data_key_ids))
    for begin in range(0, len(wanted), MOST):
        ids = wanted[begin : begin + MOST]
        store(places(), functools.partial(_delta, ids), seconds=seconds)


def publish_erasures() -> None:
    """Let every place know of erasures: a restore from older bundles must not bring such an owner back."""
    store(places(), functools.partial(_delta, []))


def places() -> list[Place]:
    """Return every place there is, or raise `BundleError` where there is none, or two have one name."""
    found = [place for source in seams.places for place in source()]
    if not found:
        raise BundleError("There is no place for key bundles, so nothing was written. Set HEARTH_KEY_BUNDLES.")
    if len({place.name for place in found}) < len(found):
        names = ", ".join(sorted(place.name for place in found))
        raise BundleError(f"Two places of key bundles have one name ({names}). Nothing was written. Rename one.")
    return found


def folders() -> list[FolderPlace]:
    """Return the folders of HEARTH_KEY_BUNDLES; without it two below the state folder. `backups` knows the buckets."""
    given = [entry.partition(":") for entry in settings.HEARTH["HEARTH_KEY_BUNDLES"]]
    if given:
        return [FolderPlace(name, Path(path)) for name, _, path in given if path.startswith("/")]
    below = settings.STATE / "key-bundles"
    return [FolderPlace(name, below / name, make=True) for name in ("first", "second")]


def store(targets: Sequence[Place], read: Callable[[], tuple[Rows, Part]], *, seconds: float = SECONDS) -> Part:
    """Read rows of the keyring and write them, as one bundle for each of these places; return which part it was.

    Raises `NotPublished`, naming each place that failed. What reached others stays there: it does no harm.
    """
    files, rows, part, root = _write_down(targets, read)
    sealed = [
        (place, file, bundle.seal(place.name, rows, part, root=root, created=file.created, identity=file.pk))
        for place, file in zip(targets, files, strict=True)
    ]
    end = time.monotonic() + seconds
    errands = [Errand(place, _carry(place, file.name, data)) for place, file, data in sealed]
    faults = []
    for (_, file, data), errand in zip(sealed, errands, strict=True):
        try:
            errand.result(end - time.monotonic())
            BundleFile.objects.filter(pk=file.pk).update(verified=Now(), size=len(data))
        except (SecurityError, OSError) as error:
            faults.append(f"{error}.")
        except Exception:  # a place may be made of any client
            logger.exception("The key bundle %s could not be written.", file)
            faults.append(f"The place {file.place} failed; the log says how.")
    if faults:
        raise NotPublished(
            " ".join(faults) + " The keys themselves are safe in the database, and nothing was named by a backup yet. "
            "It is tried again."
        )
    return part


def newest_whole(place: str) -> tuple[uuid.UUID, datetime] | None:
    """Return the run of the newest whole keyring at a place, and when it began to be read."""
    return next(iter(whole_runs(place)), None)


def whole_runs(place: str) -> Iterable[tuple[uuid.UUID, datetime]]:
    """Yield the whole keyrings at a place, newest first: all parts are there, and were found right."""
    rows = BundleFile.objects.filter(place=place, kind=Kind.FULL, verified__isnull=False, lost__isnull=True)
    for end in rows.filter(last=True).order_by("-created"):
        run: dict[str, Any] = rows.filter(run=end.run).aggregate(
            parts=Count("part", distinct=True), began=Min("created")
        )
        if end.run is not None and run["parts"] == end.part + 1:
            yield end.run, run["began"]


def _delta(ids: Sequence[uuid.UUID]) -> tuple[Rows, Part]:
    data_keys = DataKey.objects.filter(pk__in=ids)
    versions = KeyEncryptionKey.objects.filter(pk__in=data_keys.values("kek"))
    rows = bundle.rows_of(versions, data_keys, _recent_erasures())
    if missing := sorted(set(map(str, ids)) - {row["id"] for row in rows["data_keys"]}):
        raise KeyGone(
            f"{len(missing)} data keys are not in the keyring: {', '.join(missing[:5])}. They were erased, or never "
            "were. Nothing was written, and no manifest may name them."
        )
    return rows, Part(kind=Kind.DELTA)


def _recent_erasures() -> models.QuerySet[Erasure]:
    """Return the erasures that some place's newest whole keyring may not have."""
    carried_out = Erasure.objects.filter(destroyed__isnull=False)
    found = [newest_whole(place.name) for place in places()]
    starts = [each[1] for each in found if each]
    return carried_out.filter(destroyed__gte=min(starts) - MARGIN) if len(starts) == len(found) else carried_out


def _write_down(
    targets: Sequence[Place], read: Callable[[], tuple[Rows, Part]]
) -> tuple[list[BundleFile], Rows, Part, RootKey]:
    """Read the rows, and write down which bundles will hold them and which root keys they need.

    Whoever retires a root key locks it and counts these rows; so it is either counted, or seen to be retired here.
    """
    for _ in range(TRIES):
        created = _begin()
        rows, part = read()
        root = roots.ensure_root()
        needed = bundle.needed_roots(rows, root)
        with transaction.atomic(durable=True):
            usable = RootKey.objects.select_for_update(no_key=True).exclude(state=RootKey.State.RETIRED)
            if len(usable.filter(pk__in=needed).order_by("pk")) == len(needed):
                files = [_file(place.name, part, needed, created) for place in targets]
                return BundleFile.objects.bulk_create(files), rows, _with_roots(part, needed), root
    raise KeysChanged("The root keys were changed again and again meanwhile. No key bundle was written. Try again.")


def _file(place: str, part: Part, needed: Sequence[str], created: datetime) -> BundleFile:
    identity = uuid.uuid4()
    name = f"{created:%Y%m%dT%H%M%SZ}-{part.kind}-{identity}{SUFFIX}"
    named = {name: getattr(part, name) for name in ("kind", "run", "part", "last", "upto")}
    return BundleFile(id=identity, place=place, name=name, roots=list(needed), created=created, known=created, **named)


def _with_roots(part: Part, needed: tuple[str, ...]) -> Part:
    return Part(part.kind, part.run, part.part, part.last, part.upto, needed)


def _carry(place: Place, name: str, data: bytes) -> Callable[[], None]:
    """Return the call that writes a bundle and reads it back. It runs in a thread, and touches no database."""

    def carry() -> None:
        place.put(name, data)
        for pause in (0.1, 0.5, None):  # a store may need a moment to show what it took
            if place.get(name) == data:
                return
            if pause is not None:
                time.sleep(pause)
        raise PlaceError(f"The place {place.name} gives back something else than what was written. Look at its store")

    return carry


def database_time() -> datetime:
    """Return the time by the one clock that all processes share."""
    with transaction.get_connection().cursor() as cursor:
        cursor.execute("select clock_timestamp()")
        found: datetime = cursor.fetchone()[0]
        return found


def _begin() -> datetime:
    """Return when a bundle begins to be read: now, but never before one that was written earlier, whatever the clock
    does. What goes and what stays is decided by this order."""
    newest: datetime | None = BundleFile.objects.aggregate(newest=Max("created"))["newest"]
    now = database_time()
    return max(now, newest or now)


def root_needed(root: RootKey) -> int:
    """Return how many bundles can't be read whole without a root key; for the seam of that name."""
    return BundleFile.objects.filter(roots__contains=[root.pk]).count()
