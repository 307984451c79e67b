"""The pages on which an owner brings a server back: choose and look, then do; and what is kept beside it."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

from django.conf import settings
from django.contrib import messages
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods, require_POST

from accounts.decorators import member_area
from backups.models import Restore
from backups.restoring import choices, verbs
from backups.restoring.choices import Choice
from backups.restoring.forms import ChoiceForm, ConfirmForm
from tenants.access import MISSING, Access, get_server
from tenants.errors import Refused
from tenants.models import Server

Mode = Restore.Mode


@require_http_methods(["GET", "HEAD", "POST"])
@never_cache
@member_area
def restore(request: HttpRequest, slug: str, server_id: uuid.UUID) -> HttpResponse:
    """Choose what to bring back and look at what that means (GET); bring it back (POST)."""
    access, server = get_server(request.user, slug, server_id, owner=True)
    windows, points = choices.moments(server), choices.points(server)
    data = request.POST if request.method == "POST" else request.GET
    stores = choices.stores(server)
    form = ChoiceForm(data or None, points=points, windows=windows, stores=stores)
    confirm = ConfirmForm(
        request.POST if request.method == "POST" else None, server=server, to="replace what it has now"
    )
    choice = _chosen(form, server)
    if request.method == "POST" and choice is not None and confirm.is_valid():
        try:
            _do(request, server, form, confirm)
        except Refused as refusal:
            (confirm if refusal.field == "confirm" else form).refuse(refusal)
        else:
            return redirect("server", slug, server_id)
    context = _context(access, server) | {
        "form": form,
        "confirm": confirm,
        "choice": choice,
        "windows": windows,
        "points": points,
        "stores": stores,
        "unfit": _unfit(server),
    }
    return render(request, "backups/restore.html", context)


def _chosen(form: ChoiceForm, server: Server) -> Choice | None:
    """Return what was chosen, or put into the form why it can't be."""
    if not form.is_bound or not form.is_valid():
        return None
    try:
        return choices.choose(server, **form.chosen())
    except Refused as refusal:
        form.refuse(refusal)
        return None


def _do(request: HttpRequest, server: Server, form: ChoiceForm, confirm: ConfirmForm) -> None:
    mode = Mode.SWITCH if request.POST.get("mode") == Mode.SWITCH else Mode.BESIDE
    said = confirm.cleaned_data["confirm"]
    verbs.restore(request.user, server=server, mode=mode, confirm=said, **form.chosen())
    messages.success(request, "It is being brought back beside the server, which runs on meanwhile.")


def _unfit(server: Server) -> str:
    try:
        choices.refuse_unfit(server)
        choices.store_of(server)
    except Refused as refusal:
        return refusal.message
    return ""


def _asked(verb: Callable[..., Any], template: str, to: str, done: str) -> Callable[..., HttpResponse]:
    """Make the view of a verb on a copy that wants the server's name typed: GET shows the question, POST acts."""

    @require_http_methods(["GET", "HEAD", "POST"])
    @never_cache
    @member_area
    def view(request: HttpRequest, slug: str, server_id: uuid.UUID, restore_id: uuid.UUID) -> HttpResponse:
        access, server = get_server(request.user, slug, server_id, owner=True)
        row = _row(server, restore_id)
        form = ConfirmForm(request.POST if request.method == "POST" else None, server=server, to=to)
        if request.method == "POST" and form.is_valid():
            try:
                verb(request.user, restore=row, confirm=form.cleaned_data["confirm"])
            except Refused as refusal:
                if refusal.field is None:
                    messages.error(request, refusal.message)
                    return redirect("server_backups", slug, server_id)
                form.refuse(refusal)
            else:
                messages.success(request, done)
                return redirect("server", slug, server_id)
        return render(request, template, _context(access, server) | {"form": form, "row": row})

    return view


switch_to_copy = _asked(
    verbs.switch, "backups/switch.html", "switch to the copy", "The server is being switched to the copy."
)
go_back = _asked(
    verbs.go_back, "backups/go_back.html", "go back", "The server goes back to what it had before the restore."
)


@require_POST
@member_area
def drop_copy(request: HttpRequest, slug: str, server_id: uuid.UUID, restore_id: uuid.UUID) -> HttpResponse:
    """An owner removes a copy with all its data."""
    _, server = get_server(request.user, slug, server_id, owner=True)
    try:
        verbs.drop_copy(request.user, restore=_row(server, restore_id))
    except Refused as refusal:
        messages.error(request, refusal.message)
    else:
        messages.success(request, "The copy is being removed.")
    return redirect("server_backups", slug, server_id)


def _row(server: Server, restore_id: uuid.UUID) -> Restore:
    rows = Restore.objects.filter(source=server).exclude(mode=Mode.EXPORT)
    row = rows.filter(pk=restore_id).select_related("source").first()
    if row is None:
        raise Http404(MISSING)
    return row


def _context(access: Access, server: Server) -> dict[str, Any]:
    return {
        "access": access,
        "organisation": access.organisation,
        "server": server,
        "keep_days": settings.HEARTH["HEARTH_RESTORE_KEEP_DAYS"],
    }
