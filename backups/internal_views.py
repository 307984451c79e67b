"""The engine's address on the internal listener. Who calls is what the certificate says."""

from __future__ import annotations

import uuid

import msgspec
from django.http import HttpResponse, JsonResponse

from backups import sync
from backups.engine.hearth import Report
from security.transport.calls import InternalRequest, Problem, internal, payload
from tenants.models import Server


@internal("agent")
def report(request: InternalRequest) -> HttpResponse:
    """How the backups of the caller's server are → what there is to do."""
    try:
        told = msgspec.convert(payload(request), Report)
    except msgspec.ValidationError as error:
        raise Problem(400, "malformed", f"The report can't be read: {error}. Nothing was written down.") from None
    try:
        answer = sync.take(uuid.UUID(request.caller.name), told)
    except Server.DoesNotExist:
        raise Problem(410, "server-gone", "This server was deleted, or Hearth does not know it.") from None
    except sync.ForeignReport as error:
        raise Problem(403, "foreign", str(error)) from None
    return JsonResponse(msgspec.to_builtins(answer))
