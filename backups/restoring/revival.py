"""A deleted server whose final backup is still kept comes back: staff's verb, and the owner restores what is kept.

The server is made anew, empty, under its own id and name, with the signing key of its restore point: without that key
other homeservers would refuse it. Then its restore points are its own again, on its page.
"""

from __future__ import annotations

import uuid
from datetime import timedelta
from typing import Any

from django.db import transaction
from django.db.models import Value
from django.db.models.functions import Greatest
from django.utils import timezone
from django.views.decorators.debug import sensitive_variables

from audit.services import SYSTEM
from backups import places, selectors
from backups.engine import configuration
from backups.engine.catalogue import Catalogue
from backups.engine.configuration import ConfigurationError
from backups.engine.objects import Vault
from backups.engine.stores.base import StoreError
from backups.models import RestorePoint
from backups.policies import policy_of
from backups.restoring import choices
from provisioning import secrets
from security.datakeys import grants, services
from security.errors import SecurityError
from security.models import UnwrapGrant
from security.streams import DataKey, StreamError
from tenants.errors import Refused
from tenants.models import Server
from tenants.services.servers import revive_server

LEASE = timedelta(minutes=5)


@transaction.atomic
@sensitive_variables()
def revive(actor: Any, *, server: Server) -> RestorePoint:
    """Make a deleted server again, empty, and return the restore point to restore into it. All or nothing.

    Raises `Refused`: it is not gone, its backups are, its name is taken, its plan has no room, its key can't be read.
    """
    _newest(server)
    row = revive_server(actor=actor, server=server)
    point = _newest(row)  # the server's row is locked: nothing expires by its deletion any more (`backups.expiring`)
    kept = timezone.now() + timedelta(days=policy_of(row).final_days)
    selectors.whole(row).update(keep_until=Greatest("keep_until", Value(kept)))
    try:
        line = _signing_key(actor, row, point)
    except (StoreError, SecurityError, StreamError, ConfigurationError, LookupError) as error:
        raise Refused(f"The signing key can't be read from its backup: {error} Nothing was changed.") from None
    secrets.adopt_signing_key(row, line)
    return point


def _newest(server: Server) -> RestorePoint:
    point = selectors.whole(server).filter(state=RestorePoint.State.WHOLE).first()
    if point is None:
        raise Refused("No whole restore point of this server is kept any more. Nothing was changed.")
    return point


@sensitive_variables()
def _signing_key(actor: Any, server: Server, point: RestorePoint) -> str:
    """Return the signing key's line in a restore point. Its data key is opened as for an agent: under a grant."""
    store = choices.store_of(server)
    grant = grants.open_grant(
        actor,
        organisation=server.organisation_id,
        source=server.pk,
        target=server.pk,
        purpose=UnwrapGrant.Purpose.RESTORE,
        holder=uuid.uuid4(),
        fence=1,
        reason="The signing key of a deleted server that comes back",
        lease=LEASE,
    )

    def opened(identity: uuid.UUID) -> DataKey:
        with services.unwrap(server.pk, grant.pk, identity) as key:
            return DataKey(identity, bytes(key.value))

    whose = str(server.organisation_id), str(server.pk)
    with places.opened(store, server.pk) as found:
        manifest = Catalogue.read(found, *whose).points[point.identity]
        vault = Vault(store=found, organisation=whose[0], server=whose[1])
        files = configuration.read(vault.read(manifest.configuration, opened))
    grants.revoke(SYSTEM, grant.pk, reason="the signing key was read")
    name = configuration.assert_signing_key(files, manifest.signing_key_id)
    return files[name].decode("ascii").strip()
