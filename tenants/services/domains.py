"""Verbs on a customer's own domains."""

from __future__ import annotations

import secrets
from typing import Any

from django.db import IntegrityError, transaction
from django.db.models import F, Q, QuerySet
from django.utils import timezone

from accounts import limits
from audit.services import record
from tenants import dns, names, seams
from tenants.errors import Refused
from tenants.models import Domain, Organisation, Server

MAX_CLAIMS = 50
# DNS is not Hearth's own: name servers are not to be asked through it without end.
CHECKS_DOMAIN = limits.Limit("domain-check", 10, 600)
CHECKS_ORGANISATION = limits.Limit("domain-checks", 60, 3600)


@transaction.atomic
def claim_domain(*, actor: Any, organisation: Organisation, name: str) -> Domain:
    """Note that the organisation wants to prove a domain. This reserves nothing: anyone could type example.org."""
    try:
        name = names.domain_name(name)
    except Refused as refusal:
        raise Refused(refusal.message, field="name") from None
    for region in seams.open_regions():
        if region.base_domain in names.parents(name) or name in names.parents(region.base_domain):
            raise Refused(f"“{name}” belongs to Hearth: servers there need no proof. Just create one.", field="name")
    Organisation.objects.select_for_update().get(pk=organisation.pk)
    claims = Domain.objects.filter(organisation=organisation)
    if claims.filter(name=name).exists():
        raise Refused(f"“{name}” is already in the list below.", field="name")
    if claims.count() >= MAX_CLAIMS:
        raise Refused(f"There are {MAX_CLAIMS} domains in the list. Remove one that you don't use.", field="name")
    domain = Domain.objects.create(organisation=organisation, name=name, token=secrets.token_urlsafe(24))
    record(actor=actor, verb="domain.claim", object=domain, organisation_id=organisation.pk, after={"name": name})
    return domain


def check_domain(*, actor: Any, domain: Domain) -> Domain:
    """Ask DNS for the proof and note the answer. Asks before its transaction: DNS may take seconds.

    A proof stands: DNS is not asked again, so a record that vanishes later changes nothing. Where a domain has changed
    hands, staff take the old proof back (`revoke_domain`).
    """
    if domain.proved is not None:
        return domain
    wait = max(
        limits.consume(CHECKS_DOMAIN, str(domain.pk)),
        limits.consume(CHECKS_ORGANISATION, str(domain.organisation_id)),
    )
    if wait:
        raise Refused(
            f"DNS was asked often just now, and it can take some minutes until a new record is seen. Nothing was "
            f"changed. Check again in {minutes(wait)}."
        )
    try:
        dns.check(domain)
        return _prove(actor, domain)
    except Refused as refusal:
        Domain.objects.filter(pk=domain.pk, proved__isnull=True).update(
            last_checked=timezone.now(), last_error=refusal.message
        )
        raise


@transaction.atomic
def _prove(actor: Any, domain: Domain) -> Domain:
    now = timezone.now()
    rows = Domain.objects.filter(pk=domain.pk, proved__isnull=True)
    try:
        with transaction.atomic():
            changed = rows.update(proved=now, last_checked=now, last_error="")
    except IntegrityError:
        raise Refused(
            f"Another organisation has proved “{domain.name}” before. Nothing was changed. If the domain is yours now, "
            "ask whoever runs this Hearth to take the old proof back."
        ) from None
    if changed:
        record(
            actor=actor,
            verb="domain.prove",
            object=domain,
            organisation_id=domain.organisation_id,
            after={"name": domain.name},
        )
    return Domain.objects.get(pk=domain.pk)


@transaction.atomic
def remove_domain(*, actor: Any, domain: Domain) -> None:
    """Give a domain up, unless a server has its name."""
    Organisation.objects.select_for_update().get(pk=domain.organisation_id)
    locked = Domain.objects.select_for_update().filter(pk=domain.pk).first()
    if locked is None:
        raise Refused("This domain is no longer in the list. Nothing was changed.")
    used = _servers_on(locked).first()
    if locked.proved is not None and used is not None:
        raise Refused(f"The server {used.server_name} uses this domain. Nothing was changed. Delete the server first.")
    record(
        actor=actor,
        verb="domain.remove",
        object=locked,
        organisation_id=locked.organisation_id,
        before={"name": locked.name, "proved": locked.proved is not None},
    )
    locked.delete()


@transaction.atomic
def revoke_domain(*, actor: Any, domain: Domain) -> bool:
    """Take a proof back, for staff: the domain has changed hands. Servers on it stay, but federate no more.

    The claim stays too, so that its organisation can prove the domain again if it still holds it.
    """
    changed = Domain.objects.filter(pk=domain.pk, proved__isnull=False).update(
        proved=None, last_error="Staff took the proof back. If the domain is yours, check the record again."
    )
    if not changed:
        return False
    organisation = domain.organisation_id
    record(actor=actor, verb="domain.revoke", object=domain, organisation_id=organisation, before={"name": domain.name})
    for server_id in _servers_on(domain).values_list("pk", flat=True):
        # What may federate is decided when a change is carried out, so there has to be one.
        Server.objects.filter(pk=server_id).update(generation=F("generation") + 1)
        # (No partial: Django asks a robust callback that failed for its __qualname__.)
        transaction.on_commit(lambda server_id=server_id: seams.wake(server_id), robust=True)  # type: ignore[misc]
    return True


def minutes(seconds: int) -> str:
    """Return a time to wait as people say it."""
    whole = max(1, -(-seconds // 60))
    return "a minute" if whole == 1 else f"{whole} minutes"


def _servers_on(domain: Domain) -> QuerySet[Server]:
    under = Q(server_name=domain.name) | Q(server_name__endswith=f".{domain.name}")
    return Server.objects.filter(under, organisation_id=domain.organisation_id, deleted__isnull=True)
