"""Bind the request's id and the client's address for logs and the audit trail."""

from __future__ import annotations

import uuid
from collections.abc import Callable

from django.conf import settings
from django.http import HttpRequest, HttpResponse

from observability.context import RequestContext, current


class RequestContextMiddleware:
    """First in the list, so that every later line and event knows its request. Answers carry `X-Request-ID`."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        context = RequestContext(request_id=uuid.uuid4().hex, address=client_address(request))
        token = current.set(context)
        try:
            response = self.get_response(request)
        finally:
            current.reset(token)
        response["X-Request-ID"] = context.request_id
        return response


def client_address(request: HttpRequest) -> str | None:
    """Return the client's address. Only as many X-Forwarded-For entries count as there are trusted proxies."""
    proxies: int = settings.HEARTH["HEARTH_TRUSTED_PROXIES"]
    forwarded = [part.strip() for part in request.headers.get("X-Forwarded-For", "").split(",") if part.strip()]
    if proxies and len(forwarded) >= proxies:
        return forwarded[-proxies]
    return request.META.get("REMOTE_ADDR") or None
