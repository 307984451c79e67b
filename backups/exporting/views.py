"""The page on which owners take their data along: ask for an export, look how far it is, download it."""

from __future__ import annotations

import logging
import uuid
from typing import Any, cast

from django.contrib import messages
from django.http import Http404, HttpRequest, HttpResponse, StreamingHttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods, require_POST, require_safe

from accounts.decorators import member_area
from backups.engine.stores.base import StoreError
from backups.exporting import downloads, reads, verbs
from backups.exporting.downloads import Crowded, Span, Unsatisfiable
from backups.exporting.forms import ExportForm
from backups.exporting.models import Export
from backups.restoring import choices
from security.errors import SecurityError
from security.streams import StreamError
from tenants.access import MISSING, get_server
from tenants.errors import Refused
from tenants.models import Server

log = logging.getLogger(__name__)
What = Export.What


@require_http_methods(["GET", "HEAD", "POST"])
@never_cache
@member_area
def server_exports(request: HttpRequest, slug: str, server_id: uuid.UUID) -> HttpResponse:
    """What was exported, and what can be (GET); have it exported (POST)."""
    access, server = get_server(request.user, slug, server_id, owner=True)
    points, windows = choices.points(server), choices.moments(server)
    wanted = request.POST.get("what", "")
    forms = {
        what: ExportForm(request.POST if what == wanted else None, auto_id=f"{what}_%s", points=points, windows=windows)
        for what in What.values
    }
    form = forms.get(wanted)
    if form is not None and form.is_valid():
        try:
            verbs.export(request.user, server=server, **form.chosen())
        except Refused as refusal:
            form.refuse(refusal)
        else:
            messages.success(request, "The export is being made. You need not wait for it here.")
            return redirect("server_exports", slug, server_id)
    context = {
        "access": access,
        "organisation": access.organisation,
        "server": server,
        "forms": forms,
        "wanted": wanted,
        "windows": windows,
        "page": reads.page(server),
    }
    return render(request, "backups/exports.html", context)


@require_safe
@never_cache
@member_area
def download_export(request: HttpRequest, slug: str, server_id: uuid.UUID, export_id: uuid.UUID) -> HttpResponse:
    """The archive, from any byte on: a download that broke off goes on where it was."""
    _, server = get_server(request.user, slug, server_id, owner=True)
    export = _export(server, export_id)
    if not export.can_be_downloaded():
        raise Http404(MISSING)
    try:
        wanted = _span(request, export)
    except Unsatisfiable:
        return HttpResponse(status=416, headers={"Content-Range": f"bytes */{export.bytes}"})
    headers = _headers(export, wanted)
    status = 200 if wanted is None else 206
    if request.method == "HEAD":
        return HttpResponse(status=status, headers=headers)
    span = wanted or Span(0, export.bytes)
    try:
        found = downloads.pieces(export, span)
    except Crowded:
        return _later("As many downloads are going on as can at once. Go on with this one when another is done.", 30)
    except (StoreError, StreamError, SecurityError) as error:
        log.warning("The archive of export %s could not be given: %s", export.pk, error)
        text = "The archive can't be read just now. Try again in a few minutes. If that stays so, export again."
        return _later(text, 300)
    verbs.downloaded(request.user, export=export, begin=span.begin)
    answer = StreamingHttpResponse(found, status=status, headers=headers)
    return cast("HttpResponse", answer)  # as far as decorators care, it is one


@require_POST
@member_area
def remove_export(request: HttpRequest, slug: str, server_id: uuid.UUID, export_id: uuid.UUID) -> HttpResponse:
    """An owner removes an archive before its time."""
    _, server = get_server(request.user, slug, server_id, owner=True)
    try:
        verbs.remove(request.user, export=_export(server, export_id))
    except Refused as refusal:
        messages.error(request, refusal.message)
    else:
        messages.success(request, "The archive can't be downloaded any more, and is removed within minutes.")
    return redirect("server_exports", slug, server_id)


def _later(text: str, seconds: int) -> HttpResponse:
    """Answer a download that has to wait. It is no page: a program that goes on would append that to the archive."""
    headers = {"Retry-After": str(seconds)}
    return HttpResponse(f"{text}\n", status=503, content_type="text/plain; charset=utf-8", headers=headers)


def _export(server: Server, export_id: uuid.UUID) -> Export:
    row = reads.rows(server).filter(pk=export_id).first()
    if row is None:
        raise Http404(MISSING)
    return row


def _span(request: HttpRequest, export: Export) -> Span | None:
    """Return which bytes are asked for; None: all. What was begun of another archive is not gone on with (If-Range)."""
    asked = request.headers.get("Range", "")
    if not asked or request.headers.get("If-Range", _tag(export)) != _tag(export):
        return None
    return downloads.span(asked, export.bytes)


def _headers(export: Export, wanted: Span | None) -> dict[str, Any]:
    headers = {
        "Content-Type": "application/x-tar",
        "Content-Disposition": f'attachment; filename="{export.file_name}"',
        "Accept-Ranges": "bytes",
        "ETag": _tag(export),
        "X-Content-Type-Options": "nosniff",
    }
    if wanted is None:
        return headers | {"Content-Length": str(export.bytes)}
    length, place = wanted.end - wanted.begin, f"bytes {wanted.begin}-{wanted.end - 1}/{export.bytes}"
    return headers | {"Content-Length": str(length), "Content-Range": place}


def _tag(export: Export) -> str:
    """Return what names this very archive: each attempt has an object of its own."""
    return f'"{export.object.rsplit("/", 1)[-1]}"'
