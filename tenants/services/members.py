"""Verbs on who belongs to an organisation.

An owner invites an address; whoever proved that address accepts. So nobody is put into an organisation unasked, and an
owner learns nothing about who has an account.
"""

from __future__ import annotations

from typing import Any

from allauth.account.models import EmailAddress
from django.db import transaction
from django.template.loader import render_to_string

from accounts import limits
from audit.services import record
from notifications.links import public_url
from notifications.services import queue_mail
from tenants.errors import Refused
from tenants.models import Invitation, Membership, Organisation

# More than this at once is a mistake or somebody collecting addresses.
MAX_INVITATIONS = 50
INVITES_PERSON = limits.Limit("invite-person", 50, 86_400)
INVITES_ORGANISATION = limits.Limit("invite-organisation", 100, 86_400)
MAILS_MAILBOX = limits.Limit("invite-mailbox", 3, 86_400)


@transaction.atomic
def add_member(*, actor: Any, organisation: Organisation, email: str, role: str) -> Invitation:
    """Invite whoever owns `email`, and tell them by mail. All is the same whether or not an account has that address.

    A mailbox gets a few such mails a day at most, whoever invites; the invitation waits on the start page anyway.
    """
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
    if limits.consume(INVITES_PERSON, str(actor.pk)) or limits.consume(INVITES_ORGANISATION, str(organisation.pk)):
        raise Refused("You have invited very many people today. Nobody was invited now; go on tomorrow.", field="email")
    invitation = Invitation.objects.create(organisation=organisation, email=address, role=role)
    _tell(actor, invitation)
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
    if actor.pk != membership.user_id and not rows.filter(user_id=actor.pk, role=Membership.Role.OWNER).exists():
        # Somebody removed the actor between the look at the door and this lock.
        raise Refused("You are no longer an owner of this organisation. Nothing was changed.")
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


def _tell(actor: Any, invitation: Invitation) -> None:
    if limits.consume(MAILS_MAILBOX, invitation.email):
        return
    context = {"invitation": invitation, "inviter": actor, "site": public_url()}
    subject = render_to_string("tenants/email/invitation_subject.txt", context)
    text = render_to_string("tenants/email/invitation_message.txt", context)
    queue_mail(recipient=invitation.email, subject=" ".join(subject.split()), text=text)


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
