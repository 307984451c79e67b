"""No request is larger than any form here needs: whoever sends more is refused before it fills memory or disk."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Any], Coroutine[Any, Any, None]]

LARGEST = 3 * 1024 * 1024
"""Bytes. A little above Django's own limit for forms, whose page explains more."""
SENTENCE = b"What you sent is larger than anything Hearth takes. Nothing was saved.\n"


def limited(app: App, largest: int = LARGEST) -> App:
    """Return `app` behind the limit: by the announced length at once, else as soon as more has come."""

    async def call(scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
        elif _announced(scope) > largest:
            await _refuse(send)
        else:
            await app(scope, _counted(receive, largest), send)

    return call


def _counted(receive: Receive, largest: int) -> Receive:
    seen = 0

    async def counted() -> Message:
        nonlocal seen
        message = await receive()
        seen += len(message.get("body", b""))
        # Django knows this as the client hanging up: it drops what came and answers nothing.
        return {"type": "http.disconnect"} if seen > largest else message

    return counted


def _announced(scope: Message) -> int:
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit():
            return int(value[:20])
    return 0


async def _refuse(send: Send) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": 413, "headers": headers})
    await send({"type": "http.response.body", "body": SENTENCE})
