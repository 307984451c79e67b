"""Django for the internal listener: its own routes and none of the pages' middlewares. There are no sessions here."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import Callable
from typing import Any

from asgiref.sync import sync_to_async
from django.core.handlers.asgi import ASGIHandler
from django.core.handlers.exception import convert_exception_to_response
from django.db import connections
from django.http import HttpRequest, HttpResponse
from django.urls import set_urlconf

from observability.context import RequestContext, current

AT_ONCE = 16
"""Calls that are carried out at the same time; others wait, so that agents can't take the pages' database."""


class InternalHandler(ASGIHandler):
    """An ASGI application of the routes in `urlconf` alone."""

    def __init__(self, urlconf: str) -> None:
        self._urlconf = urlconf
        self._turns = asyncio.Semaphore(AT_ONCE)
        super().__init__()

    def load_middleware(self, is_async: bool = False) -> None:  # noqa: ARG002 (Django's signature)
        """Have views called as they are, each in a thread of its own."""
        nothing: list[Any] = []
        self._view_middleware = self._template_response_middleware = self._exception_middleware = nothing
        plain = self._get_response  # type: ignore[attr-defined]  # Django's stubs leave it out
        view = sync_to_async(self._bound(convert_exception_to_response(plain)), thread_sensitive=True)

        async def in_turn(request: HttpRequest) -> HttpResponse:
            # The call has been read to its end by now: a slow caller keeps nobody else waiting.
            await self._turns.acquire()
            # A caller who hangs up ends this coroutine and not the thread, so the turn is the thread's.
            work = asyncio.create_task(view(request))
            work.add_done_callback(self._done)
            return await asyncio.shield(work)

        self._middleware_chain = in_turn

    def _done(self, work: asyncio.Task[HttpResponse]) -> None:
        self._turns.release()
        with contextlib.suppress(asyncio.CancelledError):
            work.exception()  # looked at: nobody may be there any more who does

    def _bound(self, answer: Callable[[HttpRequest], Any]) -> Callable[[HttpRequest], HttpResponse]:
        """Bind request id and address, for logs and the trail. The address is the connection's: no header is asked."""

        def bound(request: HttpRequest) -> HttpResponse:
            request.urlconf = self._urlconf
            set_urlconf(self._urlconf)
            context = RequestContext(request_id=uuid.uuid4().hex, address=request.META.get("REMOTE_ADDR") or None)
            token = current.set(context)
            try:
                response: HttpResponse = answer(request)
            finally:
                current.reset(token)
                # This thread ends with its call. When Hearth stops in the middle of it, nobody else closes them.
                connections.close_all()
            response["X-Request-ID"] = context.request_id
            return response

        return bound
