"""The last answer: a fault of ours, or a part that is away and comes back."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from typing import Any

from django.db import InterfaceError, OperationalError, connections
from django.http import HttpRequest, HttpResponse
from django.template.loader import render_to_string
from django.views import defaults
from redis.exceptions import ConnectionError as RedisGone
from redis.exceptions import TimeoutError as RedisSilent

COMES_BACK_S = 10
# PostgreSQL's classes of errors that speak of the server and not of the query: connection, resources, shutdown.
AWAY = ("08", "53", "57")


def broken(request: HttpRequest) -> HttpResponse:  # noqa: ARG001 (Django's signature)
    """Answer an exception that nobody caught: 503 when the database or Redis is away, else 500.

    The pages are made without the request, because whoever is signed in stands in the database.
    """
    error = sys.exc_info()[1]
    if error is None or not is_away(error):
        return HttpResponse(render_to_string("500.html"), status=500)
    response = HttpResponse(render_to_string("503.html"), status=503)
    response["Retry-After"] = str(COMES_BACK_S)
    return response


def is_away(error: BaseException) -> bool:
    """Tell whether the error means that PostgreSQL or Redis can't be reached, or can't take work."""
    if isinstance(error, InterfaceError | RedisGone | RedisSilent):
        return True
    state = getattr(error.__cause__, "sqlstate", None)
    return isinstance(error, OperationalError) and (state is None or state.startswith(AWAY))


def own_connection(page: Callable[..., HttpResponse]) -> Callable[..., HttpResponse]:
    """Let an error page ask the database afresh, and leave no connection behind.

    Under ASGI Django makes these pages in threads that no request ends, so a connection would stay open there for
    ever, and be dead for every later page once PostgreSQL was started anew.
    """

    @wraps(page)
    def run(*args: Any, **kwargs: Any) -> HttpResponse:
        _close_own()
        try:
            return page(*args, **kwargs)
        finally:
            _close_own()

    return run


def _close_own() -> None:
    for connection in connections.all(initialized_only=True):
        if not connection.in_atomic_block:
            connection.close_if_unusable_or_obsolete()


bad_request = own_connection(defaults.bad_request)
not_allowed = own_connection(defaults.permission_denied)
not_found = own_connection(defaults.page_not_found)
