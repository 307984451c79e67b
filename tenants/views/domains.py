"""A customer's own domains and their proof."""

from __future__ import annotations

import uuid

from django.contrib import messages
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_http_methods, require_POST, require_safe

from accounts.decorators import member_area
from tenants import dns, selectors, services
from tenants.access import get_domain, get_organisation
from tenants.errors import Refused
from tenants.forms import DomainForm, posted


@require_http_methods(["GET", "HEAD", "POST"])
@member_area
def organisation_domains(request: HttpRequest, slug: str) -> HttpResponse:
    """The list of domains; owners add one."""
    access = get_organisation(request.user, slug, owner=request.method == "POST")
    form = DomainForm(posted(request))
    if request.method == "POST" and form.is_valid():
        try:
            domain = services.claim_domain(actor=request.user, organisation=access.organisation, **form.cleaned_data)
        except Refused as refusal:
            form.refuse(refusal)
        else:
            return redirect("domain", slug, domain.pk)
    context = {
        "access": access,
        "organisation": access.organisation,
        "form": form,
        "domains": selectors.domains(access.organisation),
    }
    return render(request, "tenants/domains.html", context)


@require_safe
@member_area
def domain(request: HttpRequest, slug: str, domain_id: uuid.UUID) -> HttpResponse:
    """The record to set, and what DNS said last."""
    access, domain = get_domain(request.user, slug, domain_id)
    context = {
        "access": access,
        "organisation": access.organisation,
        "domain": domain,
        "record_name": dns.record_name(domain),
        "record_value": dns.record_value(domain),
    }
    return render(request, "tenants/domain.html", context)


@require_POST
@member_area
def domain_check(request: HttpRequest, slug: str, domain_id: uuid.UUID) -> HttpResponse:
    """Ask DNS now. The page shows the answer, because the verb keeps it."""
    _, domain = get_domain(request.user, slug, domain_id, owner=True)
    try:
        services.check_domain(actor=request.user, domain=domain)
    except Refused as refusal:
        domain.refresh_from_db()
        # What DNS answered stands on the page already; other refusals are said once, here.
        if refusal.message != domain.last_error:
            messages.error(request, refusal.message)
    else:
        messages.success(request, f"{domain.name} is yours. You can give its name to a server now.")
    return redirect("domain", slug, domain_id)


@require_POST
@member_area
def domain_remove(request: HttpRequest, slug: str, domain_id: uuid.UUID) -> HttpResponse:
    """Give a domain up."""
    _, domain = get_domain(request.user, slug, domain_id, owner=True)
    try:
        services.remove_domain(actor=request.user, domain=domain)
    except Refused as refusal:
        messages.error(request, refusal.message)
        return redirect("domain", slug, domain_id)
    messages.success(request, f"{domain.name} is removed from the list.")
    return redirect("organisation_domains", slug)
