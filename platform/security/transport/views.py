"""Renewal of a certificate by whoever holds one that is still valid."""

from __future__ import annotations

import uuid
from dataclasses import dataclass

from django.http import HttpResponse, JsonResponse

from security.keyring.seams import seams
from security.transport import authority
from security.transport.calls import InternalRequest, Problem, internal, payload, text
from security.transport.errors import RequestError
from security.transport.identities import Identity


@dataclass(frozen=True)
class Caller:
    """An identity as the trail names it."""

    identity: Identity
    pk = None

    def __str__(self) -> str:
        return self.identity.uri


@internal("agent", "operator", "metrics")
def certificate(request: InternalRequest) -> HttpResponse:
    """{csr} → {chain, trust, not_after}: a new certificate for the caller's own identity, whatever it asks for."""
    csr = text(payload(request), "csr", longest=authority.LONGEST_REQUEST)
    if request.caller.kind == "agent" and not _lives(uuid.UUID(request.caller.name)):
        # Else whoever kept a copy of a deleted server's key could renew it for ever.
        raise Problem(410, "server-gone", "This server was deleted, or Hearth does not know it. Nothing was signed.")
    try:
        issued = authority.issue(csr.encode(), request.caller, actor=Caller(request.caller))
    except RequestError as error:
        raise Problem(400, "bad-request", str(error)) from None
    return JsonResponse({"chain": issued.chain, "trust": issued.trust, "not_after": issued.not_after.isoformat()})


def _lives(server: uuid.UUID) -> bool:
    return any(ask(server) is not None for ask in seams.owner_of_server)
