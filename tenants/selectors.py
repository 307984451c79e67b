"""Reads for pages. Each is a fixed number of queries, however many rows there are."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Any

from allauth.account.models import EmailAddress
from django.db.models import Count, Q, QuerySet

from tenants import limits, releases
from tenants.models import Domain, Invitation, Membership, Organisation, Plan, Server

# A page shows this many rows of a list at most; more than that needs a search, not a longer page.
SHOWN = 200


@dataclass(frozen=True)
class PlanCard:
    """A plan as people choose it."""

    plan: Plan
    lines: list[limits.Limit]
    current: bool = False


def organisations_of(user: Any) -> QuerySet[Organisation]:
    """Return the person's organisations with `server_count`."""
    alive = Count("servers", filter=Q(servers__deleted__isnull=True), distinct=True)
    return Organisation.objects.filter(memberships__user_id=user.pk).annotate(server_count=alive)[:SHOWN]


def owner_of_server(server_id: uuid.UUID) -> uuid.UUID | None:
    """Return the organisation of a server; None once everything of it is gone. Until then it may be backed up."""
    living = Server.objects.filter(pk=server_id, deleted__isnull=True)
    return living.values_list("organisation_id", flat=True).first()


def invitations_for(user: Any) -> QuerySet[Invitation]:
    """Return the invitations to addresses that the person has proved."""
    addresses = EmailAddress.objects.filter(user_id=user.pk, verified=True).values("email")
    return Invitation.objects.filter(email__in=addresses).select_related("organisation")


def plan_cards(current: Plan | None = None) -> list[PlanCard]:
    """Return the plans that are offered, and the one in use even if it no longer is."""
    wanted = Q(offered=True) | Q(pk=current.pk) if current else Q(offered=True)
    return [PlanCard(plan, limits.lines(plan), plan == current) for plan in Plan.objects.filter(wanted)]


def members(organisation: Organisation) -> list[Membership]:
    """Return the organisation's people, owners first."""
    rows = Membership.objects.filter(organisation=organisation).select_related("user")
    return list(rows.order_by("-role", "user__email")[:SHOWN])


def invitations(organisation: Organisation) -> QuerySet[Invitation]:
    """Return the addresses that were asked to join."""
    return Invitation.objects.filter(organisation=organisation)[:SHOWN]


def domains(organisation: Organisation) -> QuerySet[Domain]:
    """Return the domains that the organisation has claimed, proved or not."""
    return Domain.objects.filter(organisation=organisation)[:SHOWN]


def proved_domains(organisation: Organisation) -> list[str]:
    """Return the names of the domains that the organisation has proved."""
    rows = Domain.objects.filter(organisation=organisation, proved__isnull=False)
    return list(rows.values_list("name", flat=True)[:SHOWN])


def upgrades(server: Server) -> list[tuple[str, str, str]]:
    """Return each other release, whether it is newer or older, and why the server can't go to it (empty: it can)."""
    found = []
    age = "newer"
    for release in releases.RELEASES:
        reason = ""
        try:
            releases.check_upgrade(server.version, release.version)
        except releases.ReleaseRefused as refusal:
            reason = str(refusal)
        if release.version == server.version:
            age = "older"
        else:
            found.append((release.version, age, reason))
    return found
