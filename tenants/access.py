"""The only way from a request to an organisation or to one of its objects.

Someone else's object and a missing one get the same answer from the same queries, so that nobody learns what exists.
Members may look; owners act.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Any

from allauth.account.models import EmailAddress
from django.core.exceptions import PermissionDenied
from django.http import Http404

from tenants.models import Domain, Invitation, Membership, Organisation, Server

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


def get_member(user: Any, slug: str, member_id: uuid.UUID) -> tuple[Access, Membership]:
    """Return a membership that the person may end: their own, or as an owner any; refuses like `get_organisation`."""
    access = get_organisation(user, slug)
    rows = Membership.objects.filter(organisation=access.organisation, pk=member_id)
    membership = rows.select_related("user").first()
    if membership is None:
        raise Http404(MISSING)
    if not access.is_owner and membership.pk != access.membership.pk:
        raise PermissionDenied(OWNERS_ONLY)
    membership.organisation = access.organisation
    return access, membership


def get_invitation(user: Any, slug: str, invitation_id: uuid.UUID) -> tuple[Access, Invitation]:
    """Return an invitation of the organisation, for an owner; refuses like `get_organisation`."""
    access = get_organisation(user, slug, owner=True)
    invitation = Invitation.objects.filter(organisation=access.organisation, pk=invitation_id).first()
    if invitation is None:
        raise Http404(MISSING)
    return access, invitation


def get_own_invitation(user: Any, invitation_id: uuid.UUID) -> Invitation:
    """Return an invitation to an address that the person has proved, or raise `Http404`."""
    addresses = EmailAddress.objects.filter(user_id=user.pk, verified=True).values("email")
    rows = Invitation.objects.filter(pk=invitation_id, email__in=addresses).select_related("organisation")
    invitation = rows.first()
    if invitation is None:
        raise Http404(MISSING)
    return invitation
