"""The internal listener in the web process: it starts and ends with it, by ASGI's lifespan."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from django.conf import settings
from django.db import connections

from config.body import App, Message, Receive, Send, limited
from security.transport.certificates import Keeper, Mounted, Own, Source
from security.transport.handler import InternalHandler
from security.transport.listener import Listener
from security.transport.places import MOUNTED, internal_hosts, internal_port

LARGEST = 1024 * 1024
"""Bytes of a call."""
_running: list[Listener] = []
"""Those of this process: one, or none where another server than ours loads the application."""


def source(given: dict[str, Any]) -> Source:
    """Return where the listener's certificate comes from: mounted files, or Hearth's own authority."""
    if given["HEARTH_INTERNAL_CERTIFICATE"]:
        return Mounted(*(Path(given[name]) for name in MOUNTED))
    return Own(internal_hosts(given), release=connections.close_all)


def listener() -> Listener:
    """Return the listener as the settings want it."""
    given = settings.HEARTH
    app = limited(cast("App", InternalHandler("config.internal_urls")), LARGEST)
    return Listener(app, Keeper(source(given)), given["HEARTH_INTERNAL_HOST"], internal_port(given))


def with_listener(app: App) -> App:
    """Return `app` with the internal listener beside it, for as long as the server says that it lives."""

    async def call(scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _live(receive, send)
        else:
            await app(scope, receive, send)

    return call


def state() -> str:
    """Return "ok", or why nobody can call: for `/readyz`. Once it listens, it stays so."""
    if all(each.listens for each in _running):
        return "ok"
    return "It has no certificate yet, so agents can't call. The web server's log says why."


async def _live(receive: Receive, send: Send) -> None:
    internal = listener()
    await receive()
    try:
        await internal.start()
    except OSError as error:
        await send({"type": "lifespan.startup.failed", "message": str(error)})
        return
    _running.append(internal)
    await send({"type": "lifespan.startup.complete"})
    await receive()
    _running.remove(internal)
    await internal.stop()
    await send({"type": "lifespan.shutdown.complete"})
