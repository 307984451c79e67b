"""The pages on which an organisation sees how its backups were tried out."""

from __future__ import annotations

import uuid

from django.contrib import messages
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_POST, require_safe

from accounts.decorators import member_area
from backups.proofs import pages, schedule
from backups.proofs.models import Proof
from tenants.access import get_server
from tenants.errors import Refused


@require_safe
@never_cache
@member_area
def server_proofs(request: HttpRequest, slug: str, server_id: uuid.UUID) -> HttpResponse:
    """What was tried with a server's backups, newest first."""
    access, server = get_server(request.user, slug, server_id)
    page = pages.proofs(server, request.GET.get("page"))
    context = {
        "access": access,
        "organisation": access.organisation,
        "server": server,
        "page": page,
        "proofs": [pages.shown(proof) for proof in page.object_list],
        "open": Proof.objects.filter(server=server, kind=Proof.Kind.RECOVERY, result="").exists(),
    }
    return render(request, "backups/proofs.html", context)


@require_safe
@never_cache
@member_area
def server_proof(request: HttpRequest, slug: str, server_id: uuid.UUID, proof_id: uuid.UUID) -> HttpResponse:
    """One of them, with its evidence."""
    access, server = get_server(request.user, slug, server_id)
    proof = Proof.objects.select_related("store", "region").filter(pk=proof_id, server=server).first()
    if proof is None:
        raise Http404
    context = {
        "access": access,
        "organisation": access.organisation,
        "server": server,
        "shown": pages.shown(proof),
        "facts": pages.facts(proof),
    }
    return render(request, "backups/proof.html", context)


@require_POST
@member_area
def prove_now(request: HttpRequest, slug: str, server_id: uuid.UUID) -> HttpResponse:
    """An owner asks for a recovery test."""
    _, server = get_server(request.user, slug, server_id, owner=True)
    try:
        schedule.prove_now(request.user, server=server)
    except Refused as refusal:
        messages.error(request, refusal.message)
    else:
        messages.success(request, "A recovery test begins as soon as there is room. Your server is not touched by it.")
    return redirect("server_proofs", slug, server_id)
