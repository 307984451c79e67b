"""The start page, new organisations, and their plan."""

from __future__ import annotations

from django.contrib import messages
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_http_methods, require_safe

from accounts.decorators import member_area
from tenants import limits, selectors, services
from tenants.access import get_organisation
from tenants.errors import Refused
from tenants.forms import OrganisationForm, PlanForm, posted


@require_safe
def home(request: HttpRequest) -> HttpResponse:
    """What Hearth is, for visitors; for people, the way to their organisations."""
    if not request.user.is_authenticated:
        return render(request, "tenants/landing.html")
    return _start(request)


@member_area
def _start(request: HttpRequest) -> HttpResponse:
    organisations = list(selectors.organisations_of(request.user))
    invitations = list(selectors.invitations_for(request.user))
    if not organisations and not invitations:
        return redirect("organisation_new")
    if len(organisations) == 1 and not invitations:
        return redirect("organisation", organisations[0].slug)
    context = {"organisations": organisations, "invitations": invitations}
    return render(request, "tenants/organisations.html", context)


@require_http_methods(["GET", "HEAD", "POST"])
@member_area
def organisation_new(request: HttpRequest) -> HttpResponse:
    """A name and a plan."""
    form = OrganisationForm(posted(request))
    if request.method == "POST" and form.is_valid():
        try:
            organisation = services.create_organisation(actor=request.user, **form.cleaned_data)
        except Refused as refusal:
            form.refuse(refusal)
        else:
            messages.success(request, f"{organisation.name} is ready. Create its first server.")
            return redirect("server_new", organisation.slug)
    context = {"form": form, "cards": selectors.plan_cards(), "chosen": form["plan"].value()}
    return render(request, "tenants/organisation_new.html", context)


@require_http_methods(["GET", "HEAD", "POST"])
@member_area
def organisation_plan(request: HttpRequest, slug: str) -> HttpResponse:
    """What the plan allows and what is used; owners choose another."""
    access = get_organisation(request.user, slug, owner=request.method == "POST")
    plan = access.organisation.subscription.plan
    form = PlanForm(posted(request))
    if request.method == "POST" and form.is_valid():
        wanted = form.cleaned_data["plan"]
        try:
            services.choose_plan(actor=request.user, organisation=access.organisation, plan=wanted)
        except Refused as refusal:
            form.refuse(refusal)
        else:
            messages.success(request, f"Your plan is now {wanted.name}. Your servers go on as they are.")
            return redirect("organisation_plan", slug)
    context = {
        "access": access,
        "organisation": access.organisation,
        "form": form,
        "plan": plan,
        "lines": limits.lines(plan, limits.in_use(access.organisation)),
        "cards": selectors.plan_cards(plan),
        "chosen": form["plan"].value() if form.is_bound else plan.code,
    }
    return render(request, "tenants/plan.html", context)
