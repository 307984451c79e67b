"""The identity of each server's agent: a certificate of Hearth's own authority, named after the server.

The agent makes its key and renews its certificate by itself. Hearth gives the first one, as a step of making the
server, and a new one to whichever agent can't help itself: an older server that has none yet, one whose certificate
ended while Hearth was away, one that was told another address.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable

import structlog
from django.conf import settings

from provisioning.leases import last_fence
from provisioning.providers.base import Observation, Provider, ProviderError
from security.errors import SecurityError
from security.transport import authority
from security.transport.identities import Identity
from security.transport.places import internal_address

A_LOOK = 16
"""Certificates that one look gives at most: each costs some 20 ms, and the next look is seconds away."""
AGAIN = 60.0
"""Seconds before an agent that could not be helped is tried again."""
log = structlog.get_logger()
_tried: dict[str, float] = {}


def certify(server_id: uuid.UUID, provider: Provider, *, fence: int) -> None:
    """Give the server's agent a new certificate, or raise `ProviderError`; the one that it has goes on until then.

    Does nothing where agents get theirs elsewhere. Cut off anywhere, it is simply done again.
    """
    name = str(server_id)
    request = provider.certificate_request(name, fence=fence)
    if not request:
        return
    try:
        issued = authority.issue(request, Identity("agent", name))
    except SecurityError as error:
        log.warning("certificate_not_issued", server=name, error=str(error))
        raise ProviderError(
            "Hearth could not sign the certificate by which this server's agent speaks to it. Your data is untouched. "
            "Try again; if it fails again, ask support.",
            code="CertificateNotIssued",
        ) from None
    provider.install_certificate(name, chain=issued.chain, trust=issued.trust, address=address(), fence=fence)


def help_agents(provider: Provider, seen: Iterable[Observation]) -> int:
    """Give certificates to agents that ask for one, or know another address than ours; return how many got one.

    The caller leaves out servers that an operation works on. What goes wrong with one does not keep the others waiting.
    """
    now, given = time.monotonic(), 0
    for server_id, tried in list(_tried.items()):
        if now - tried >= AGAIN:
            del _tried[server_id]
    for one in [one for one in seen if _in_need(one) and one.server_id not in _tried][:A_LOOK]:
        _tried[one.server_id] = now
        try:
            certify(uuid.UUID(one.server_id), provider, fence=last_fence(uuid.UUID(one.server_id)))
        except ProviderError as error:
            log.warning("agent_not_helped", server=one.server_id, reason=one.certificate_wanted, error=str(error))
            if error.code == "AgentUnreachable":
                break  # then none of them can be helped, and each would cost as long
            continue
        del _tried[one.server_id]
        given += 1
        log.info("agent_certified", server=one.server_id, reason=one.certificate_wanted or "AddressChanged")
    return given


def address() -> str:
    """Return where agents of this machine reach the internal listener."""
    return internal_address(settings.HEARTH)


def _in_need(seen: Observation) -> bool:
    return bool(seen.certificate_wanted or (seen.internal_address and seen.internal_address != address()))
