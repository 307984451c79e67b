"""What keeps the places of key bundles right: the whole keyring once a day, and the end of what is needed no more."""

from __future__ import annotations

import contextlib
import functools
import logging
import time
import uuid
from collections.abc import Iterator
from datetime import datetime, timedelta

from django.conf import settings
from django.db import connection
from django.db.models import Exists, Max, Min, OuterRef, Q

from audit.services import SYSTEM
from security.errors import BundleError, SecurityError
from security.keyring import bundle, erasure, publish, roots
from security.keyring.bundle import Part, Rows
from security.keyring.places import Errand, Place
from security.keyring.publish import Kind, database_time
from security.keyring.recovery import MARGIN
from security.models import BundleFile, DataKey, Erasure, KeyEncryptionKey, RootKey

logger = logging.getLogger(__name__)
EVERY = timedelta(days=1)
ABANDONED = timedelta(days=1)
UNVERIFIED = timedelta(hours=1)
AT_ONCE = 500
"""How many files that nobody wrote down one turn looks into."""
KNOWN = ("name", "pk", "verified", "lost")
SECONDS = 60.0
LOCK = 0x4845424B
FIRST = uuid.UUID(int=0)
State = KeyEncryptionKey.State


def keep(*, seconds: float) -> None:
    """Do what is due, for about that long: the next call goes on. Two at once are one. A fault at one place stops it
    there alone; it is logged, and tried again by the next call."""
    end = time.monotonic() + seconds
    with _alone() as mine:
        if not mine:
            return
        _set_right()
        for place in publish.places():
            with _said(place.name):
                tidy(place, until=end)
                while due(place) and time.monotonic() < end:
                    write_part(place, *_next(place))
        with _said("erasures"):
            if _untold_erasures():
                publish.publish_erasures()
        with _said("root keys"):
            for root in RootKey.objects.filter(state=RootKey.State.READABLE):
                if not publish.root_needed(root) and not roots.in_use(root):
                    roots.retire(SYSTEM, root)


def due(place: Place) -> bool:
    """Tell whether the whole keyring is to be written: the newest one is a day old, or the root key is newer, or a
    bundle was lost since."""
    newest = publish.newest_whole(place.name)
    found = BundleFile.objects.filter(place=place.name).aggregate(lost=Max("lost"))["lost"]
    now = database_time()
    # What has not come yet was dated by a clock that was ahead; believed, it would ask for a whole keyring each time.
    dates = [date for date in (now - EVERY, roots.ensure_root().created, found) if date and date <= now + MARGIN]
    return newest is None or newest[1] < max(dates)


def write_whole(place: Place) -> int:
    """Write the whole keyring to a place now, whatever is there; return in how many parts."""
    part = write_part(place, uuid.uuid4())
    while not part.last and part.run:
        part = write_part(place, part.run, part.part + 1, part.upto or FIRST)
    return part.part + 1


def write_part(place: Place, run: uuid.UUID, number: int = 0, after: uuid.UUID = FIRST) -> Part:
    """Write one part of the whole keyring: the data keys behind `after`, with all that opens them."""

    def read() -> tuple[Rows, Part]:
        ids = list(DataKey.objects.filter(pk__gt=after).order_by("pk").values_list("pk", flat=True)[: publish.MOST])
        last = len(ids) < publish.MOST
        data_keys = DataKey.objects.filter(pk__gt=after, **({} if last else {"pk__lte": ids[-1]}))
        unused = ~Exists(DataKey.objects.filter(kek=OuterRef("pk"))) if last else Q(pk__in=[])
        wanted = Q(pk__in=data_keys.values("kek")) | Q(unused, state=State.ACTIVE)
        versions = KeyEncryptionKey.objects.filter(wanted).exclude(state=State.DESTROYED)
        erasures = Erasure.objects.all() if last else Erasure.objects.none()
        return bundle.rows_of(versions, data_keys, erasures), Part(
            Kind.FULL, run, number, last, None if last else ids[-1]
        )

    return publish.store([place], read)


def tidy(place: Place, *, until: float) -> None:
    """Make the list of bundles agree with what lies at a place, and remove what is needed no more, until a time of the
    monotonic clock."""
    began = database_time()
    names = set(Errand(place, place.list).result(SECONDS))
    rows = BundleFile.objects.filter(place=place.name)
    # Compared here: there may be more names than a statement takes.
    known = {name: (pk, verified, lost) for name, pk, verified, lost in rows.values_list(*KNOWN).iterator()}
    _mark([pk for name, (pk, _, lost) in known.items() if lost and name in names], None)
    expected = {name: pk for name, (pk, verified, lost) in known.items() if verified and verified < began and not lost}
    if gone := [pk for name, pk in expected.items() if name not in names]:
        _mark(gone, began)
        logger.warning("%d key bundles of the place %s are gone. A whole one is written anew.", len(gone), place.name)
    for name in sorted(names - set(known), reverse=True)[:AT_ONCE]:
        _adopt(place, name)
    _learn(place, until)
    for row in rows.filter(_needless(place.name, began)).iterator():
        Errand(place, functools.partial(place.remove, row.name)).result(SECONDS)
        row.delete()
        if time.monotonic() > until:
            return


def late() -> list[str]:
    """Return one sentence for each place that has had no whole keyring for two days."""
    since = RootKey.objects.aggregate(since=Min("created"))["since"]
    try:
        places = publish.places()
    except BundleError as error:
        return [str(error)]
    found = []
    for place in places:
        newest = publish.newest_whole(place.name)
        last = newest[1] if newest else since
        if last and last < database_time() - 2 * EVERY:
            found.append(
                f"The place {place.name} has had no whole key bundle since {last:%d %B %Y}. What is backed up stays "
                "readable with the database. The log says why; when it is mended, run: manage.py keys publish"
            )
    return found


def _set_right() -> None:
    """Date what a clock that was ahead has dated as now: that is the latest it can be, and the order stays."""
    now = database_time()
    for name in ("created", "verified", "lost"):
        BundleFile.objects.filter(**{f"{name}__gt": now + MARGIN}).update(**{name: now})


def _mark(ids: list[uuid.UUID], lost: datetime | None) -> None:
    for begin in range(0, len(ids), 5000):
        BundleFile.objects.filter(pk__in=ids[begin : begin + 5000]).update(lost=lost)


def _next(place: Place) -> tuple[uuid.UUID, int, uuid.UUID]:
    """Return run, number and beginning of the part to write; a run that was cut off goes on where it stopped."""
    rows = BundleFile.objects.filter(place=place.name, kind=Kind.FULL, verified__isnull=False, lost__isnull=True)
    row = rows.order_by("-created").first()
    if row and row.run and row.upto and not row.last and row.created > database_time() - ABANDONED:
        return row.run, row.part + 1, row.upto
    return uuid.uuid4(), 0, FIRST


def _needless(place: str, now: datetime) -> Q:
    """Return which bundles of a place may go. The two newest whole keyrings and what came after the older stay."""
    runs = list(publish.whole_runs(place))
    spoiled = Q(verified=None, created__lt=now - UNVERIFIED)
    if len(runs) < 2:
        return spoiled
    newest, before = runs[0][1], runs[1][1]
    expired = now - timedelta(days=settings.HEARTH["HEARTH_KEY_BUNDLE_DAYS"])
    # One that nobody could open yet may tell of an erasure.
    settled = Q(known__isnull=False) | Q(created__lt=expired) | Q(lost__isnull=False)
    old = [run for run, began in runs[2:] if began < expired]
    whole = Q(kind=Kind.FULL, run__in=[run for run, _ in runs])
    return spoiled | settled & (
        Q(lost__lt=newest - MARGIN)
        | Q(kind=Kind.DELTA, created__lt=before - MARGIN)
        | Q(kind=Kind.FULL, run__in=old)
        | (Q(kind=Kind.FULL, created__lt=before - MARGIN) & ~whole)
    )


def _adopt(place: Place, name: str) -> None:
    """Write down a bundle that this database does not know: it lost it, or an older one was restored."""
    try:
        found = bundle.label(Errand(place, functools.partial(place.get, name)).result(SECONDS))
    except BundleError:
        return  # not ours to judge, and never removed
    if found.place != place.name:
        return
    created = min(found.created, database_time())
    values = {word: getattr(found.part, word) for word in ("kind", "run", "part", "last", "upto")}
    values |= {"place": place.name, "name": name, "roots": list(found.part.roots)}
    values |= {"created": created, "verified": database_time()}
    BundleFile.objects.get_or_create(id=found.id, defaults=values)


def _learn(place: Place, until: float) -> None:
    """Carry out erasures that bundles tell of which this database did not write, newest first.

    One that can't be opened now, because its root key is away, is tried again by each turn.
    """
    unread, faults = BundleFile.objects.filter(place=place.name, known=None, verified__isnull=False, lost=None), []
    for row in unread.order_by("-created"):
        try:
            found = bundle.parse(Errand(place, functools.partial(place.get, row.name)).result(SECONDS), place.name)
        except SecurityError as error:
            faults.append(str(error))
        else:
            if count := erasure.learn([Erasure(**each) for each in found.erasures], found.id):
                logger.warning("%d erasures that this database did not know of were carried out again.", count)
            BundleFile.objects.filter(pk=row.pk).update(known=database_time())
        if time.monotonic() > until:
            break
    if faults:
        logger.warning(
            "%d key bundles of the place %s can't be opened, so an erasure that only they tell of is not carried out. "
            "It is tried again. The newest: %s",
            *(len(faults), place.name, faults[0]),
        )


def _untold_erasures() -> bool:
    """Tell whether an erasure was carried out that some place has no bundle about."""
    last = Erasure.objects.aggregate(last=Max("destroyed"))["last"]
    if last is None:
        return False
    telling = BundleFile.objects.filter(Q(kind=Kind.DELTA) | Q(last=True), verified__isnull=False, lost__isnull=True)
    newest = dict(telling.values_list("place").annotate(newest=Max("created")))
    found = [newest.get(place.name) for place in publish.places()]
    # Once more later: a bundle that was read in the same moments may have missed it.
    settled = last + MARGIN if database_time() > last + MARGIN else last
    return any(each is None or each < settled for each in found)


@contextlib.contextmanager
def _said(name: str) -> Iterator[None]:
    """Log what goes wrong with one thing, and go on with the next."""
    try:
        yield
    except (SecurityError, OSError) as error:
        logger.warning("Key bundles (%s): %s", name, error)
    except Exception:
        logger.exception("Key bundles (%s) could not be looked after.", name)


@contextlib.contextmanager
def _alone() -> Iterator[bool]:
    """Yield whether nobody else does this now. The lock ends with the connection, whatever happens to us."""
    with connection.cursor() as cursor:
        cursor.execute("select pg_try_advisory_lock(%s)", [LOCK])
        mine = cursor.fetchone()[0]
    try:
        yield mine
    finally:
        if mine:
            with connection.cursor() as cursor:
                cursor.execute("select pg_advisory_unlock(%s)", [LOCK])
