"""What a step of a proof works with, and how it says that it waits or has ended."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from typing import Any

from django.db import transaction
from django.views.decorators.debug import sensitive_variables

from audit.services import SYSTEM
from backups.models import Store
from backups.proofs.leases import Lease
from backups.proofs.models import Proof
from backups.recoveries import instance_spec
from provisioning import secrets, spec
from provisioning.fleet import provider_for
from provisioning.models import Operation, Region, ServerStatus
from provisioning.providers.base import Provider, ServerSpec
from security.datakeys import grants
from security.models import UnwrapGrant
from tenants.models import Server


class NotYet(Exception):
    """A step waits for something that others do; it is looked at again `after`."""

    def __init__(self, after: timedelta) -> None:
        super().__init__()
        self.after = after


class Verdict(Exception):
    """The proof is over. The text is for a person; `columns` are written beside it."""

    result = ""

    def __init__(self, text: str, **columns: Any) -> None:
        super().__init__(text)
        self.columns = columns


class Unproved(Verdict):
    """It was tried, and it did not work."""

    result = Proof.Result.FAILED


class Missed(Verdict):
    """It could not take place. That is a failure too, of those who run this Hearth."""

    result = Proof.Result.MISSED


@dataclass
class Context:
    """One proof, its server, and where its instance runs."""

    lease: Lease
    lost: threading.Event
    """Set when the lease is lost."""

    @property
    def proof(self) -> Proof:
        return self.lease.proof

    @property
    def server(self) -> Server:
        return self.proof.server

    @property
    def was_tried(self) -> bool:
        """Whether backups were read already: what fails before says nothing about them."""
        return self.proof.step in {"follow", "check", "compare", "read"}

    @cached_property
    def region(self) -> Region:
        return self.proof.region or region_of(self.server)

    @cached_property
    def store(self) -> Store:
        store = self.proof.store
        if store is None:
            raise Missed("No store is known whose backups could be read.")
        return store

    @cached_property
    def provider(self) -> Provider:
        return provider_for(self.region)

    @cached_property
    @sensitive_variables()
    def secrets(self) -> Mapping[str, str]:
        return secrets.ensure_spec_secrets(self.server, self.lease.write)

    @sensitive_variables()
    def spec(self, version: str) -> ServerSpec:
        """Return the spec of the throw-away instance."""
        applied = ServerStatus.objects.values_list("applied", flat=True).filter(server=self.server).first()
        if not applied or self.proof.instance is None:
            raise Missed("The server was never finished, so there is nothing that could be brought back.")
        own = spec.build(self.server, Operation.Kind.RESTART, applied, applied, self.secrets)
        return instance_spec(own, self.proof.instance, version)

    def open_grant(self, reason: str) -> UnwrapGrant:
        """Open data keys of the server's backups for this proof. Raises `GrantTaken`, `LeaseLostError`.

        Together with the row that names it: whoever had this proof give way finds no grant opened behind that.
        """
        proof, server, fence = self.proof, self.server, self.lease.fence
        with transaction.atomic():
            self.lease.set()
            grant = grants.open_grant(
                SYSTEM,
                organisation=server.organisation_id,
                source=server.pk,
                target=server.pk,
                purpose=UnwrapGrant.Purpose.DRILL,
                holder=proof.pk,
                fence=fence,
                reason=reason[:200],
            )
            self.lease.set(grant=grant.pk, grant_fence=fence)
        return grant

    def note(self, **more: Any) -> None:
        """Add to the evidence."""
        self.lease.set(evidence=self.proof.evidence | more)


def region_of(server: Server) -> Region:
    """Return where a server runs. Raises `Missed`."""
    region = Region.objects.filter(code=server.region).first()
    if region is None:
        raise Missed(f"The region “{server.region}” does not exist any more.")
    return region
