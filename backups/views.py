"""The page on which an organisation sees how a server's backups are."""

from __future__ import annotations

import uuid

from django.contrib import messages
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_POST, require_safe

from accounts.decorators import member_area
from backups import orders, selectors
from backups.restoring import reads
from tenants.access import get_server
from tenants.errors import Refused


@require_safe
@never_cache
@member_area
def server_backups(request: HttpRequest, slug: str, server_id: uuid.UUID) -> HttpResponse:
    """How backups are, what can be restored, and how that was proved."""
    access, server = get_server(request.user, slug, server_id)
    context = {
        "access": access,
        "organisation": access.organisation,
        "server": server,
        "card": selectors.card(server, request.GET.get("page")),
        "kept": reads.kept(server),
    }
    return render(request, "backups/server.html", context)


@require_POST
@member_area
def back_up_now(request: HttpRequest, slug: str, server_id: uuid.UUID) -> HttpResponse:
    """An owner asks for a restore point."""
    _, server = get_server(request.user, slug, server_id, owner=True)
    try:
        orders.back_up_now(request.user, server=server)
    except Refused as refusal:
        messages.error(request, refusal.message)
    else:
        messages.success(request, "A restore point is being taken. You need not wait for it here.")
    return redirect("server_backups", slug, server_id)
