"""Renewal of a certificate by whoever holds one that is still valid."""

from __future__ import annotations

import uuid
from dataclasses import dataclass

from django.http import HttpResponse, JsonResponse

from security.datakeys.allowances import Bucket
from security.datakeys.errors import TooMany
from security.keyring.seams import seams
from security.transport import authority
from security.transport.calls import InternalRequest, Problem, internal, payload, text
from security.transport.errors import RequestError
from security.transport.identities import Identity

# Each one is a row in the trail for ever, and nobody needs more than one in days.
RENEWALS = Bucket("certificate", 60, 1 / 60)


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
        RENEWALS.take(request.caller.uri)
        issued = authority.issue(csr.encode(), request.caller, actor=Caller(request.caller))
    except RequestError as error:
        raise Problem(400, "bad-request", str(error)) from None
    except TooMany as refusal:
        raise Problem(429, "too-many", f"It is signed at most once a minute. Try again in {refusal.wait} s.") from None
    return JsonResponse({"chain": issued.chain, "trust": issued.trust, "not_after": issued.not_after.isoformat()})


def _lives(server: uuid.UUID) -> bool:
    return any(ask(server) is not None for ask in seams.owner_of_server)
