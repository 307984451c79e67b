"""At the edge of each request: its id and the client's address, for logs and the trail; no copies of pages."""

from __future__ import annotations

import ipaddress
import time
import uuid
from collections.abc import Callable

from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.utils.cache import add_never_cache_headers

from observability.context import RequestContext, current
from observability.metrics import REQUEST_SECONDS, REQUESTS

METHODS = {"GET", "HEAD", "POST", "OPTIONS"}


class RequestContextMiddleware:
    """First in the list, so that every later line and event knows its request. Answers carry `X-Request-ID`.

    It also counts them, by the page's name: an address that nobody knows must not make a new series.
    """

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        context = RequestContext(request_id=uuid.uuid4().hex, address=client_address(request))
        token = current.set(context)
        began = time.perf_counter()
        try:
            response = self.get_response(request)
        finally:
            current.reset(token)
        response["X-Request-ID"] = context.request_id
        count(request, response, time.perf_counter() - began)
        return response


def count(request: HttpRequest, response: HttpResponse, seconds: float) -> None:
    """Count one answer."""
    found = request.resolver_match
    page = found.view_name or "unnamed" if found else "none"
    method = request.method if request.method in METHODS else "other"
    REQUESTS.labels(page=page, method=method, status=str(response.status_code)).inc()
    REQUEST_SECONDS.labels(page=page).observe(seconds)


def client_address(request: HttpRequest) -> str | None:
    """Return the client's address. Only as many X-Forwarded-For entries count as there are trusted proxies."""
    proxies: int = settings.HEARTH["HEARTH_TRUSTED_PROXIES"]
    forwarded = [part.strip() for part in request.headers.get("X-Forwarded-For", "").split(",") if part.strip()]
    told = address_of(forwarded[-proxies]) if proxies and len(forwarded) >= proxies else None
    return told or address_of(request.META.get("REMOTE_ADDR") or "")


def address_of(text: str) -> str | None:
    """Return the IP address that `text` names, or None. IPv4 in IPv6 clothes is IPv4; zones and ports are left out."""
    bare = text.rpartition(":")[0] if text.count(":") == 1 else text.partition("]")[0].lstrip("[")
    try:
        address = ipaddress.ip_address(bare.partition("%")[0])
    except ValueError:
        return None
    mapped = getattr(address, "ipv4_mapped", None)
    return str(mapped or address)


class NeverStoredMiddleware:
    """Pages are a person's own: no cache keeps one that does not say otherwise, so none outlives signing out.

    Placed after the static files, which say otherwise.
    """

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        response = self.get_response(request)
        if not response.has_header("Cache-Control"):
            add_never_cache_headers(response)
        return response
