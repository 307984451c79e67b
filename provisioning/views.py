"""The overview of an organisation's servers, and the page of one server."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

from django.contrib import messages
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_POST, require_safe
from django_htmx.http import HTMX_STOP_POLLING

from accounts.decorators import member_area
from provisioning import selectors, services
from provisioning.access import get_operation
from provisioning.models import Operation
from tenants.access import Access, get_organisation, get_server
from tenants.errors import Refused
from tenants.models import Server


@require_safe
@never_cache
@member_area
def organisation(request: HttpRequest, slug: str) -> HttpResponse:
    """The organisation's servers with their status, and what they take of the plan. It is also what its list polls."""
    access = get_organisation(request.user, slug)
    page, rows = selectors.server_rows(access.organisation, request.GET.get("page"))
    context = {
        "access": access,
        "organisation": access.organisation,
        "page": page,
        "rows": rows,
        "busy": any(row.busy for row in rows),
        "plan": access.organisation.subscription.plan,
        "lines": selectors.plan_use(access.organisation),
    }
    status = 200 if context["busy"] or not request.headers.get("HX-Request") else HTMX_STOP_POLLING
    return render(request, "provisioning/organisation.html", context, status=status)


@require_safe
@never_cache
@member_area
def server(request: HttpRequest, slug: str, server_id: uuid.UUID) -> HttpResponse:
    """One server: how it is, what is going on, how to connect."""
    access, found = get_server(request.user, slug, server_id)
    return render(request, "provisioning/server.html", _context(access, found))


@require_safe
@never_cache
@member_area
def server_live(request: HttpRequest, slug: str, server_id: uuid.UUID) -> HttpResponse:
    """The part of the page that changes. The status 286 tells htmx that there is nothing more to wait for."""
    access, found = get_server(request.user, slug, server_id)
    context = _context(access, found)
    status = 200 if context["page"].poll else HTMX_STOP_POLLING
    return render(request, "provisioning/live.html", context, status=status)


@require_safe
@never_cache
@member_area
def server_log(request: HttpRequest, slug: str, server_id: uuid.UUID, operation_id: uuid.UUID) -> HttpResponse:
    """The steps and the whole log of one operation."""
    access, operation = get_operation(request.user, slug, server_id, operation_id)
    context = selectors.operation_log(operation) | {
        "access": access,
        "organisation": access.organisation,
        "server": operation.server,
        "operation": operation,
    }
    return render(request, "provisioning/log.html", context)


@require_POST
@never_cache
@member_area
def server_reveal(request: HttpRequest, slug: str, server_id: uuid.UUID) -> HttpResponse:
    """Show the admin password, once: this answer is the only place where it will ever stand."""
    access, found = get_server(request.user, slug, server_id, owner=True)
    try:
        password = services.reveal_password(request.user, server=found)
    except Refused as refusal:
        messages.error(request, refusal.message)
        return redirect("server", slug, server_id)
    context = _context(access, found) | {"password": password}
    return render(request, "provisioning/password.html", context)


def _verb(verb: Callable[..., Operation], done: str) -> Callable[..., HttpResponse]:
    @require_POST
    @member_area
    def view(request: HttpRequest, slug: str, server_id: uuid.UUID, operation_id: uuid.UUID) -> HttpResponse:
        _, operation = get_operation(request.user, slug, server_id, operation_id, owner=True)
        try:
            verb(request.user, operation=operation)
        except Refused as refusal:
            messages.error(request, refusal.message)
        else:
            messages.success(request, done)
        return redirect("server", slug, server_id)

    return view


operation_retry = _verb(services.retry_operation, "It is tried again, from the step that did not finish.")
operation_cancel = _verb(services.cancel_operation, "It is cancelled before its next step.")


def _context(access: Access, found: Server) -> dict[str, Any]:
    return {
        "access": access,
        "organisation": access.organisation,
        "server": found,
        "page": selectors.server_page(found),
    }
