"""Who belongs to an organisation, and invitations."""

from __future__ import annotations

import uuid

from django.contrib import messages
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_http_methods, require_POST

from accounts.decorators import member_area
from tenants import selectors, services
from tenants.access import MISSING, get_invitation, get_member, get_organisation, get_own_invitation
from tenants.errors import Refused
from tenants.forms import MemberForm, posted


@require_http_methods(["GET", "HEAD", "POST"])
@member_area
def organisation_members(request: HttpRequest, slug: str) -> HttpResponse:
    """The list of people; owners invite."""
    access = get_organisation(request.user, slug, owner=request.method == "POST")
    form = MemberForm(posted(request))
    if request.method == "POST" and form.is_valid():
        try:
            invitation = services.add_member(actor=request.user, organisation=access.organisation, **form.cleaned_data)
        except Refused as refusal:
            form.refuse(refusal)
        else:
            messages.success(
                request,
                f"{invitation.email} is invited. Hearth tells them by mail (a mailbox gets at most three such mails a "
                "day), and the invitation waits on their start page.",
            )
            return redirect("organisation_members", slug)
    context = {
        "access": access,
        "organisation": access.organisation,
        "form": form,
        "members": selectors.members(access.organisation),
        "invitations": selectors.invitations(access.organisation),
    }
    return render(request, "tenants/members.html", context)


@require_POST
@member_area
def member_remove(request: HttpRequest, slug: str, member_id: uuid.UUID) -> HttpResponse:
    """An owner takes a person out, or a person leaves."""
    access, membership = get_member(request.user, slug, member_id)
    leaving = membership.pk == access.membership.pk
    try:
        services.remove_member(actor=request.user, membership=membership)
    except Refused as refusal:
        messages.error(request, refusal.message)
    else:
        messages.success(request, f"{membership.user} is no longer a member of {access.organisation.name}.")
        if leaving:
            return redirect("home")
    return redirect("organisation_members", slug)


@require_POST
@member_area
def invitation_withdraw(request: HttpRequest, slug: str, invitation_id: uuid.UUID) -> HttpResponse:
    """An owner takes an invitation back."""
    _, invitation = get_invitation(request.user, slug, invitation_id)
    try:
        services.withdraw_invitation(actor=request.user, invitation=invitation)
    except Refused as refusal:
        messages.error(request, refusal.message)
    else:
        messages.success(request, f"The invitation of {invitation.email} is withdrawn.")
    return redirect("organisation_members", slug)


@require_POST
@member_area
def invitation_answer(request: HttpRequest, invitation_id: uuid.UUID, answer: str) -> HttpResponse:
    """A person accepts or declines an invitation to their own address."""
    if answer not in {"accept", "decline"}:
        raise Http404(MISSING)
    invitation = get_own_invitation(request.user, invitation_id)
    try:
        if answer == "decline":
            services.decline_invitation(actor=request.user, invitation=invitation)
            messages.success(request, f"You declined the invitation to {invitation.organisation.name}.")
            return redirect("home")
        services.accept_invitation(actor=request.user, invitation=invitation)
    except Refused as refusal:
        messages.error(request, refusal.message)
        return redirect("home")
    messages.success(request, f"Welcome to {invitation.organisation.name}.")
    return redirect("organisation", invitation.organisation.slug)
