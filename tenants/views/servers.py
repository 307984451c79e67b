"""New servers, and the verbs on one. The server's own page belongs to `provisioning`, which knows how it is."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

from django.conf import settings
from django.contrib import messages
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_http_methods, require_POST

from accounts.decorators import member_area
from tenants import limits, selectors, services
from tenants.access import Access, get_organisation, get_server
from tenants.errors import OutOfDate, Refused
from tenants.forms import DeleteForm, RefusableForm, ServerForm, SizeForm, SuspendForm, UpgradeForm, VerbForm, posted
from tenants.models import Server

View = Callable[..., HttpResponse]


@require_http_methods(["GET", "HEAD", "POST"])
@member_area
def server_new(request: HttpRequest, slug: str) -> HttpResponse:
    """Name, region, and the server name that can never change."""
    access = get_organisation(request.user, slug, owner=True)
    organisation = access.organisation
    form = ServerForm(posted(request), proved=selectors.proved_domains(organisation))
    if request.method == "POST" and form.is_valid():
        try:
            server = services.create_server(actor=request.user, organisation=organisation, **form.cleaned_data)
        except Refused as refusal:
            form.refuse(refusal)
        else:
            return redirect("server", slug, server.pk)
    plan = organisation.subscription.plan
    context = {"access": access, "organisation": organisation, "form": form, "plan": plan, "full": False}
    if request.method != "POST":
        try:
            limits.check_room(plan, limits.in_use(organisation))
        except Refused:
            context["full"] = True
    return render(request, "tenants/server_new.html", context)


def _plain(verb: Callable[..., Server], done: str) -> View:
    """Make the view of a verb that needs no question: a button sends it."""

    @require_POST
    @member_area
    def view(request: HttpRequest, slug: str, server_id: uuid.UUID) -> HttpResponse:
        _, server = get_server(request.user, slug, server_id, owner=True)
        form = VerbForm(request.POST)
        try:
            if not form.is_valid():
                raise OutOfDate
            verb(actor=request.user, server=server, **form.cleaned_data)
        except Refused as refusal:
            messages.error(request, refusal.message)
        else:
            messages.success(request, done)
        return redirect("server", slug, server_id)

    return view


def _asked(
    verb: Callable[..., Server], make_form: Callable[[Any, Server], RefusableForm], template: str, done: str
) -> View:
    """Make the view of a verb that asks something first: GET shows the question, POST acts."""

    @require_http_methods(["GET", "HEAD", "POST"])
    @member_area
    def view(request: HttpRequest, slug: str, server_id: uuid.UUID) -> HttpResponse:
        access, server = get_server(request.user, slug, server_id, owner=True)
        form = make_form(posted(request), server)
        if request.method == "POST":
            try:
                if form.is_valid():
                    verb(actor=request.user, server=server, **form.cleaned_data)
                    messages.success(request, done)
                    return redirect("server", slug, server_id)
                if "generation" in form.errors:
                    raise OutOfDate
            except Refused as refusal:
                if refusal.field is None:
                    messages.error(request, refusal.message)
                    return redirect("server", slug, server_id)
                form.refuse(refusal)
        return render(request, template, _question(access, server, form))

    return view


def _question(access: Access, server: Server, form: RefusableForm) -> dict[str, Any]:
    grace = settings.HEARTH["HEARTH_DELETE_GRACE_HOURS"]
    return {
        "access": access,
        "organisation": access.organisation,
        "server": server,
        "form": form,
        "grace_hours": grace,
    }


def _seen(server: Server) -> dict[str, Any]:
    return {"generation": server.generation}


def _upgrade_form(data: Any, server: Server) -> UpgradeForm:
    releases = selectors.upgrades(server)
    choices = [(version, f"{version} ({age})") for version, age, reason in releases if not reason]
    newer = any(age == "newer" for _, age, _ in releases)
    if choices and not newer:
        # Nobody should step back just because the first choice stood there.
        choices.insert(0, ("", "Choose an older version"))
    form = UpgradeForm(data, initial=_seen(server), versions=choices)
    form.newer = newer
    form.refused = [(version, reason) for version, _, reason in releases if reason]
    return form


def _size_form(data: Any, server: Server) -> SizeForm:
    now = limits.size_of(server)
    most = limits.largest_size(server.organisation.subscription.plan, limits.in_use(server.organisation), now)
    return SizeForm(data, initial=_seen(server) | now, most=most)


restart = _plain(services.restart_server, "The server restarts. Its apps connect again by themselves.")
resume = _plain(services.resume_server, "The server opens again.")
undelete = _plain(services.undelete_server, "The server comes back.")
password = _asked(
    services.reset_admin_password,
    lambda data, server: VerbForm(data, initial=_seen(server)),
    "tenants/server_password.html",
    "A new password is being set. This page shows it once when it is there.",
)
suspend = _asked(
    services.suspend_server,
    lambda data, server: SuspendForm(data, initial=_seen(server)),
    "tenants/server_suspend.html",
    "The server is being suspended. Its data stays.",
)
upgrade = _asked(services.upgrade_server, _upgrade_form, "tenants/server_upgrade.html", "The server is being upgraded.")
size = _asked(services.resize_server, _size_form, "tenants/server_size.html", "The server gets its new size.")
delete = _asked(
    services.delete_server,
    lambda data, server: DeleteForm(data, initial=_seen(server), server=server),
    "tenants/server_delete.html",
    "The server is being closed.",
)
