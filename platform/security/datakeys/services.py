"""Who gets which data key. The caller is a server, known by its agent's certificate; nothing that it says is believed.

Fresh keys are made for that server alone. A key is opened only under a live grant whose target is that server, and only
when it is a backup's key of the grant's organisation and source: no sealed column's, no other organisation's.
"""

from __future__ import annotations

import logging
import re
import threading
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from django.db.models import BooleanField, ExpressionWrapper, F, Q
from django.db.models.functions import Now
from django.views.decorators.debug import sensitive_variables

from security.datakeys import allowances
from security.datakeys.errors import Damaged, GrantEnded, KeysErased, Malformed, NotFound, ServerGone, Unavailable
from security.datakeys.grants import owner_of
from security.errors import BundleError, KeyGone, KeysChanged, KeySourceError, NotPublished, WrongKey
from security.keyring import deks, publish
from security.keyring.deks import Context, Opened
from security.models import PLATFORM, DataKey, UnwrapGrant
from security.secret import Key

logger = logging.getLogger(__name__)
BACKUP = "backup."
PURPOSE = re.compile(r"backup\.[a-z][a-z0-9-]{0,39}")
"""What an agent's data keys are for. Those of sealed columns have other names, so none of them can be meant."""
MOST = 1000
"""Data keys in one call to publish."""
PUBLISH_SECONDS, PUBLISH_WAIT = 20.0, 2.0
"""How long the places, and a turn to write to them, may take: callers give up after 30 s."""
IS_LIVE = Q(revoked_at=None, expires_at__gt=Now())
LIVE = ExpressionWrapper(IS_LIVE, output_field=BooleanField())
_publishing = threading.BoundedSemaphore(4)
"""A place that hangs must not take all the calls that this process can carry."""


@sensitive_variables()
def fresh(server: uuid.UUID, purpose: str, name: str) -> Opened:
    """Return a new data key for one object of `server`'s backups. Raises `DataKeyRefused`."""
    _allow(allowances.FRESH, server)
    if not PURPOSE.fullmatch(purpose):
        raise Malformed("`purpose` must be of the form `backup.name`, in small letters. No key was made.")
    if not name or len(name) > 255 or not name.isprintable():
        raise Malformed("`object` must be a name of 1 to 255 printable characters. No key was made.")
    owner = _owner(server)
    with _typed():
        return deks.new_data_key(Context(owner, purpose, server, name))


@sensitive_variables()
def unwrap(server: uuid.UUID, grant: uuid.UUID, data_key: uuid.UUID) -> Key:
    """Open a data key for the agent of `server`, the grant's target. Raises `DataKeyRefused`.

    Whether the grant is live is decided last, by one write after the key was opened: once it is revoked nothing leaves
    here any more, and an HSM that is slow holds up no revocation.
    """
    _allow(allowances.UNWRAP, server)
    row = UnwrapGrant.objects.filter(pk=grant, target=server).annotate(live=LIVE).first()
    if row is None:
        raise _noticed(server, grant, data_key)
    if not row.live:
        raise _ended()
    if _owner(server) != row.organisation:
        raise ServerGone("This server is another organisation's now. Nothing was opened.")
    found = (
        DataKey.objects.select_related("kek")
        .filter(pk=data_key, owner=row.organisation, server=row.source, shared=False, purpose__startswith=BACKUP)
        .first()
    )
    if found is None:
        raise _noticed(server, grant, data_key)
    with _typed():
        key = deks.unwrap(found)
    if not UnwrapGrant.objects.filter(IS_LIVE, pk=grant).update(opened=F("opened") + 1, last_used=Now()):
        key.wipe()
        raise _ended()
    return key


def publish_keys(server: uuid.UUID, data_keys: Sequence[uuid.UUID]) -> None:
    """Return when every place of key bundles holds these keys of `server`'s backups: then a manifest may name them.

    Raises `DataKeyRefused`.
    """
    _allow(allowances.PUBLISH, server)
    wanted = set(data_keys)
    if not 0 < len(wanted) <= MOST:
        raise Malformed(f"Name 1 to {MOST} data keys at once. Nothing was published.")
    owner = _owner(server)
    _allow(allowances.PUBLISHED, server, len(wanted))
    mine = DataKey.objects.filter(pk__in=wanted, owner=owner, server=server, purpose__startswith=BACKUP)
    if mine.count() != len(wanted):
        raise NotFound
    if not _publishing.acquire(timeout=PUBLISH_WAIT):
        raise Unavailable("The places of key bundles are slow. Nothing was promised; try again in a minute.")
    try:
        with _typed():
            publish.publish(wanted, seconds=PUBLISH_SECONDS)
    finally:
        _publishing.release()


def _allow(buckets: Sequence[allowances.Bucket], server: uuid.UUID, amount: int = 1) -> None:
    for bucket in buckets:
        bucket.take(str(server), amount)


def _owner(server: uuid.UUID) -> uuid.UUID:
    owner = owner_of(server)
    if owner is None or owner == PLATFORM:
        raise ServerGone("This server was deleted, or Hearth does not know it. Its agent gets no keys.")
    return owner


def _ended() -> GrantEnded:
    return GrantEnded(
        "The grant of this restore has expired or was revoked. Nothing more is opened by it; what was restored so far "
        "is whole. Whoever restores may open another one."
    )


def _noticed(server: uuid.UUID, grant: uuid.UUID, data_key: uuid.UUID) -> NotFound:
    """An honest agent never asks for what it was not given: somebody should look."""
    logger.warning("The agent of server %s asked for data key %s by grant %s: refused.", server, data_key, grant)
    return NotFound()


@contextmanager
def _typed() -> Iterator[None]:
    """Say in the caller's terms what the keyring says in its own."""
    try:
        yield
    except KeyGone as error:
        raise KeysErased(str(error)) from None
    except WrongKey as error:
        logger.error("%s", error)
        raise Damaged(str(error)) from None
    except (KeySourceError, KeysChanged, NotPublished, BundleError) as error:
        logger.warning("%s", error)
        raise Unavailable("The keys can't be used at this moment. Nothing was done; try again in a minute.") from None
