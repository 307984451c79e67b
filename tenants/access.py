"""The only way from a request to an organisation or to one of its objects.

Someone else's object and a missing one get the same answer from the same queries, so that nobody learns what exists.
Members may look; owners act.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Any

from django.core.exceptions import PermissionDenied
from django.http import Http404

from tenants.models import Domain, Membership, Organisation, Server

MISSING = "There is no such page, or it belongs to an organisation you are not a member of."
OWNERS_ONLY = "Only owners of this organisation can do this. Nothing was changed. Ask an owner, or ask to become one."


@dataclass(frozen=True)
class Access:
    """A person's way into one organisation."""

    organisation: Organisation
    membership: Membership

    @property
    def is_owner(self) -> bool:
        """Whether the person may change things here."""
        return self.membership.role == Membership.Role.OWNER


def get_organisation(user: Any, slug: str, *, owner: bool = False) -> Access:
    """Return the way into the organisation, or raise `Http404`; with `owner`, `PermissionDenied` for a plain member."""
    members = Membership.objects.select_related("organisation__subscription__plan")
    membership = members.filter(user_id=user.pk, organisation__slug=slug).first()
    if membership is None:
        raise Http404(MISSING)
    access = Access(membership.organisation, membership)
    if owner and not access.is_owner:
        raise PermissionDenied(OWNERS_ONLY)
    return access


def get_server(user: Any, slug: str, server_id: uuid.UUID, *, owner: bool = False) -> tuple[Access, Server]:
    """Return a server of the organisation, deleted ones too; refuses like `get_organisation`."""
    access = get_organisation(user, slug)
    server = Server.objects.filter(organisation=access.organisation, pk=server_id).first()
    if server is None:
        raise Http404(MISSING)
    if owner and not access.is_owner:
        raise PermissionDenied(OWNERS_ONLY)
    server.organisation = access.organisation
    return access, server


def get_domain(user: Any, slug: str, domain_id: uuid.UUID, *, owner: bool = False) -> tuple[Access, Domain]:
    """Return a domain that the organisation has claimed; refuses like `get_organisation`."""
    access = get_organisation(user, slug)
    domain = Domain.objects.filter(organisation=access.organisation, pk=domain_id).first()
    if domain is None:
        raise Http404(MISSING)
    if owner and not access.is_owner:
        raise PermissionDenied(OWNERS_ONLY)
    return access, domain
