"""Who belongs to an organisation: asked by address, joined by the address's owner, and always an owner left."""

from __future__ import annotations

from typing import Any

import pytest
from allauth.account.models import EmailAddress

from accounts import limits
from accounts.models import User
from audit.models import AuditEvent
from notifications.models import Mail
from tenants import services
from tenants.errors import Refused
from tenants.models import Membership, Organisation
from tenants.services import members
from tests.together import at_once

pytestmark = pytest.mark.django_db


def membership(organisation: Organisation, user: User) -> Membership:
    return organisation.memberships.get(user=user)


def test_it_works(acme: Organisation, alice: User, charlie: User) -> None:

    invitation = services.add_member(actor=alice, organisation=acme, email=" Charlie@Example.org ", role="member")
    assert invitation.email == "charlie@example.org"
    assert not acme.memberships.filter(user=charlie).exists()
    joined = services.accept_invitation(actor=charlie, invitation=invitation)
    assert (joined.organisation, joined.role) == (acme, "member")
    assert acme.invitations.count() == 0
    verbs = list(AuditEvent.objects.filter(organisation_id=acme.pk).values_list("verb", flat=True)[:3])
    assert verbs == ["member.add", "invitation.accept", "invitation.create"]
    services.remove_member(actor=alice, membership=joined)
    assert not acme.memberships.filter(user=charlie).exists()


def test_a_strangers_address_looks_like_any_other(acme: Organisation, alice: User, charlie: User) -> None:
    known = services.add_member(actor=alice, organisation=acme, email=charlie.email, role="member")
    unknown = services.add_member(actor=alice, organisation=acme, email="nobody@example.org", role="member")
    assert {field.name for field in known._meta.fields} == {"id", "organisation", "email", "role", "created"}
    assert (known.role, known.organisation) == (unknown.role, unknown.organisation)


def test_only_the_owner_of_the_address_can_answer(acme: Organisation, alice: User, charlie: User) -> None:

    invitation = services.add_member(actor=alice, organisation=acme, email="dora@example.org", role="owner")
    for answer in (services.accept_invitation, services.decline_invitation):
        with pytest.raises(Refused, match="for another address"):
            answer(actor=charlie, invitation=invitation)
    # An address that is only claimed proves nothing.
    EmailAddress.objects.create(user=charlie, email="dora@example.org", verified=False)
    with pytest.raises(Refused, match="for another address"):
        services.accept_invitation(actor=charlie, invitation=invitation)
    assert acme.invitations.count() == 1


def test_an_invitation_works_once(acme: Organisation, alice: User, charlie: User) -> None:
    invitation = services.add_member(actor=alice, organisation=acme, email=charlie.email, role="member")
    services.decline_invitation(actor=charlie, invitation=invitation)
    for answer in (services.accept_invitation, services.decline_invitation):
        with pytest.raises(Refused, match="no longer open"):
            answer(actor=charlie, invitation=invitation)
    with pytest.raises(Refused, match="no longer open"):
        services.withdraw_invitation(actor=alice, invitation=invitation)


@pytest.mark.parametrize(
    ("email", "role", "answer"),
    [
        ("bob@example.org", "member", ("email", "already a member")),
        ("asked@example.org", "owner", ("email", "already invited")),
        ("new@example.org", "king", ("role", "Choose a role")),
    ],
)
def test_it_is_refused(acme: Organisation, alice: User, email: str, role: str, answer: tuple[str, str]) -> None:
    services.add_member(actor=alice, organisation=acme, email="asked@example.org", role="member")
    with pytest.raises(Refused, match=answer[1]) as refused:
        services.add_member(actor=alice, organisation=acme, email=email, role=role)
    assert refused.value.field == answer[0]


def test_an_owner_always_stays(acme: Organisation, alice: User, bob: User) -> None:
    with pytest.raises(Refused, match="the only owner"):
        services.remove_member(actor=alice, membership=membership(acme, alice))
    gone = membership(acme, bob)
    services.remove_member(actor=alice, membership=gone)
    gone.pk = gone.pk or alice.pk
    with pytest.raises(Refused, match="no longer a member"):
        services.remove_member(actor=alice, membership=gone)


@pytest.mark.django_db(transaction=True)
def test_two_owners_who_remove_each_other_take_turns(acme: Organisation, alice: User, bob: User) -> None:
    acme.memberships.filter(user=bob).update(role="owner")
    ours, theirs = membership(acme, alice), membership(acme, bob)
    outcomes = at_once(
        [
            lambda: services.remove_member(actor=alice, membership=theirs),
            lambda: services.remove_member(actor=bob, membership=ours),
        ]
    )
    assert len([outcome for outcome in outcomes if isinstance(outcome, Refused)]) == 1
    assert acme.memberships.filter(role="owner").count() == 1


def test_invitations_are_not_for_collecting_addresses(acme: Organisation, alice: User) -> None:

    for number in range(members.MAX_INVITATIONS):
        services.add_member(actor=alice, organisation=acme, email=f"p{number}@example.org", role="member")
    with pytest.raises(Refused, match="open invitations"):
        services.add_member(actor=alice, organisation=acme, email="one-more@example.org", role="member")


def test_a_mail_tells_of_the_invitation(acme: Organisation, alice: User, charlie: User, settings: Any) -> None:
    settings.PUBLIC_URL = "https://hearth.example"
    for address in (charlie.email, "nobody@example.org"):
        services.add_member(actor=alice, organisation=acme, email=address, role="owner")
    known, unknown = (Mail.objects.get(recipient=address) for address in (charlie.email, "nobody@example.org"))
    assert known.subject == "You are invited to “Acme” at Hearth"
    assert "alice@example.org invites you" in known.text
    assert "https://hearth.example/" in known.text
    assert (known.subject, known.text) == (unknown.subject, unknown.text)


def test_a_mail_goes_only_with_its_invitation(acme: Organisation, alice: User, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(**_: object) -> None:
        raise RuntimeError("the disk is full")

    monkeypatch.setattr(members, "record", broken)
    with pytest.raises(RuntimeError, match="disk"):
        services.add_member(actor=alice, organisation=acme, email="dora@example.org", role="member")
    assert not Mail.objects.exists()
    assert acme.invitations.count() == 0


def test_a_mailbox_is_not_flooded_by_inviting_again_and_again(acme: Organisation, alice: User) -> None:
    for _ in range(members.MAILS_MAILBOX.amount + 3):
        invitation = services.add_member(actor=alice, organisation=acme, email="dora@example.org", role="member")
        services.withdraw_invitation(actor=alice, invitation=invitation)
    assert Mail.objects.filter(recipient="dora@example.org").count() == members.MAILS_MAILBOX.amount


@pytest.mark.parametrize("limit", ["INVITES_PERSON", "INVITES_ORGANISATION"])
def test_nobody_invites_without_end(
    acme: Organisation, alice: User, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    monkeypatch.setattr(members, limit, limits.Limit("t", 1, 86_400))
    services.add_member(actor=alice, organisation=acme, email="p1@example.org", role="member")
    with pytest.raises(Refused, match=r"invited very many people today\. Nobody was invited"):
        services.add_member(actor=alice, organisation=acme, email="p2@example.org", role="member")
    assert acme.invitations.count() == Mail.objects.count() == 1


def test_an_owner_removed_in_the_same_moment_removes_nobody(acme: Organisation, alice: User, bob: User) -> None:
    acme.memberships.filter(user=bob).update(role="owner")
    hers = membership(acme, alice)
    services.remove_member(actor=alice, membership=membership(acme, bob))
    with pytest.raises(Refused, match="no longer an owner"):
        services.remove_member(actor=bob, membership=hers)
    assert acme.memberships.count() == 1
