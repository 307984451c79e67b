"""Verbs on who belongs to an organisation.

An owner invites an address; whoever proved that address accepts. So nobody is put into an organisation unasked, and an
owner learns nothing about who has an account.
"""

from __future__ import annotations

from typing import Any

from allauth.account.models import EmailAddress
from django.db import transaction

from audit.services import record
from tenants.errors import Refused
from tenants.models import Invitation, Membership, Organisation

# More than this at once is a mistake or somebody collecting addresses.
MAX_INVITATIONS = 50


@transaction.atomic
def add_member(*, actor: Any, organisation: Organisation, email: str, role: str) -> Invitation:
    """Invite whoever owns `email`. The answer is the same whether or not an account has that address."""
    address = email.strip().lower()
    if role not in Membership.Role.values:
        raise Refused("Choose a role: owner or member.", field="role")
    _lock(organisation)
    if Membership.objects.filter(organisation=organisation, user__email=address).exists():
        raise Refused(f"{address} is already a member. Nothing was changed.", field="email")
    invitations = Invitation.objects.filter(organisation=organisation)
    if invitations.filter(email=address).exists():
        raise Refused(
            f"{address} is already invited. To change the role, withdraw that invitation first.", field="email"
        )
    if invitations.count() >= MAX_INVITATIONS:
        raise Refused(f"There are {MAX_INVITATIONS} open invitations. Withdraw some first.", field="email")
    invitation = Invitation.objects.create(organisation=organisation, email=address, role=role)
    record(
        actor=actor,
        verb="invitation.create",
        object=invitation,
        organisation_id=organisation.pk,
        after={"email": address, "role": role},
    )
    return invitation


@transaction.atomic
def withdraw_invitation(*, actor: Any, invitation: Invitation) -> None:
    """Take an open invitation back."""
    _end(actor, invitation, "invitation.withdraw")


@transaction.atomic
def decline_invitation(*, actor: Any, invitation: Invitation) -> None:
    """Say no to an invitation to the actor's own address."""
    _check_addressee(actor, invitation)
    _end(actor, invitation, "invitation.decline")


@transaction.atomic
def accept_invitation(*, actor: Any, invitation: Invitation) -> Membership:
    """Join the organisation. The invitation is used up."""
    _check_addressee(actor, invitation)
    organisation = invitation.organisation
    _lock(organisation)
    role = invitation.role
    _end(actor, invitation, "invitation.accept")
    membership, made = Membership.objects.get_or_create(organisation=organisation, user=actor, defaults={"role": role})
    if made:
        record(
            actor=actor,
            verb="member.add",
            object=membership,
            organisation_id=organisation.pk,
            after={"user": str(actor.pk), "role": role},
        )
    return membership


@transaction.atomic
def remove_member(*, actor: Any, membership: Membership) -> None:
    """Take a person out of the organisation. One owner always stays."""
    _lock(membership.organisation)
    rows = Membership.objects.filter(organisation_id=membership.organisation_id)
    current = rows.filter(pk=membership.pk).select_related("user", "organisation").first()
    if current is None:
        raise Refused("That person is no longer a member. Nothing was changed.")
    owners = rows.filter(role=Membership.Role.OWNER)
    if current.role == Membership.Role.OWNER and owners.count() == 1:
        raise Refused(
            f"{current.user} is the only owner, and an organisation always has one. Nothing was changed. Make somebody "
            "else an owner first."
        )
    record(
        actor=actor,
        verb="member.remove",
        object=current,
        organisation_id=current.organisation_id,
        before={"user": str(current.user_id), "role": current.role},
    )
    current.delete()


def _lock(organisation: Organisation) -> None:
    # Two owners who remove each other at the same moment must take turns.
    Organisation.objects.select_for_update().get(pk=organisation.pk)


def _end(actor: Any, invitation: Invitation, verb: str) -> None:
    locked = Invitation.objects.select_for_update().filter(pk=invitation.pk).first()
    if locked is None:
        raise Refused("This invitation is no longer open. Nothing was changed.")
    record(
        actor=actor,
        verb=verb,
        object=locked,
        organisation_id=locked.organisation_id,
        before={"email": locked.email, "role": locked.role},
    )
    locked.delete()


def _check_addressee(actor: Any, invitation: Invitation) -> None:
    if not EmailAddress.objects.filter(user_id=actor.pk, verified=True, email__iexact=invitation.email).exists():
        raise Refused("This invitation is for another address. Nothing was changed.")
