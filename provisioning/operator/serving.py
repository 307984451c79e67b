"""The operator's own small web server: whether it lives, whether it acts, its numbers."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

from aiohttp import web

Check = Callable[[], str]
"""Returns nothing when all is well, else what is not."""


@contextlib.asynccontextmanager
async def serve(host: str, port: int, *, live: Check, ready: Check, numbers: Callable[[], bytes]) -> AsyncIterator[int]:
    """Serve `/livez`, `/readyz` and `/metrics`; give the port."""

    def answer(check: Check) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def handle(_request: web.Request) -> web.Response:
            fault = check()
            return web.Response(status=503 if fault else 200, text=fault or "ok")

        return handle

    async def show(_request: web.Request) -> web.Response:
        return web.Response(body=numbers(), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})

    app = web.Application()
    app.router.add_get("/livez", answer(live))
    app.router.add_get("/readyz", answer(ready))
    app.router.add_get("/metrics", show)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port)
        await site.start()
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()
