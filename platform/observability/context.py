"""What is known about the request or task at hand: bound once at the edge, read by logs and by the audit trail."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(frozen=True)
class RequestContext:
    """Where a change came from. `address` is the client's, behind trusted proxies too; None outside a request."""

    request_id: str = ""
    address: str | None = None


current: ContextVar[RequestContext] = ContextVar("hearth_request", default=RequestContext())  # noqa: B039 (frozen)
