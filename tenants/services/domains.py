"""Verbs on a customer's own domains."""

from __future__ import annotations

import secrets
from typing import Any

from django.db import IntegrityError, transaction
from django.db.models import Q
from django.utils import timezone

from audit.services import record
from tenants import dns, names, seams
from tenants.errors import Refused
from tenants.models import Domain, Organisation, Server

MAX_CLAIMS = 50


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
    """Ask DNS for the proof and note the answer. Asks before its transaction: DNS may take seconds."""
    if domain.proved is not None:
        return domain
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
            "ask whoever runs this Hearth to sort it out."
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
    under = Q(server_name=locked.name) | Q(server_name__endswith=f".{locked.name}")
    used = Server.objects.filter(under, organisation_id=locked.organisation_id, deleted__isnull=True).first()
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
