"""The agent's socket: one request a connection, lines of JSON.

Request: `{"verb", "version" | "spec" | "server_id", "fence", ...}`. Answer: any number of `{"line": text}` and
`{"alive": true}`, then one `{"result": ...}` or `{"error": {"message", "code", "retry"}}`. A verb goes on to its end
when its caller goes away: the caller's successor waits for it, and finds its work done.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import struct
import sys
import traceback
from pathlib import Path
from typing import Any

from provisioning.providers.base import Progress, ProviderError, ServerSpec
from provisioning.providers.local.agent.fleet import Fleet
from provisioning.providers.local.agent.machine import disk_error
from provisioning.providers.local.paths import AGENT_SOCKET, RuntimeFolderError, agent_socket, runtime_dir

LONGEST = 64 * 1024 * 1024
"""Bytes of a request: one to restore brings along all sessions that are open on a server."""
ALIVE_SECONDS = 5.0
SOCKET_LOOK = 2.0
CERTIFYING = {"certificate_request": (), "install_certificate": ("chain", "trust", "address")}
"""Verbs that change an agent's certificate, with the texts that they carry."""


class Socket:
    """Serves the fleet's verbs to processes of our own user."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._server: asyncio.Server | None = None
        self._verbs: set[asyncio.Task[dict[str, Any]]] = set()

    async def open(self, state: Path) -> None:
        """Listen on the socket of `state`, mode 0600."""
        path = runtime_dir(state) / AGENT_SOCKET
        path.unlink(missing_ok=True)  # we hold the lock of the state folder: nobody else listens there
        listening = socket.socket(socket.AF_UNIX)
        old = os.umask(0o177)
        try:
            listening.bind(str(path))  # and no more: what another task starts meanwhile would inherit this mask
        finally:
            os.umask(old)
        self._server = await asyncio.start_unix_server(self._serve, sock=listening, limit=LONGEST)

    async def keep(self, state: Path) -> None:
        """Listen anew when somebody has emptied /tmp: nobody could reach us any more."""
        while True:
            await asyncio.sleep(SOCKET_LOOK)
            if agent_socket(state).exists():
                continue
            with contextlib.suppress(OSError, RuntimeFolderError):
                before = self._server
                await self.open(state)
                if before is not None:
                    before.close()

    async def close(self) -> None:
        """Take no more requests and end those that run: each verb can be done again."""
        if self._server is not None:
            self._server.close()
        for verb in self._verbs:
            verb.cancel()
        await asyncio.gather(*self._verbs, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if _peer(writer) not in (0, os.geteuid()):
                return
            request = json.loads(await asyncio.wait_for(reader.readline(), 10))
            verb = asyncio.create_task(self._answer(request, lambda text: _send(writer, {"line": text})))
            self._verbs.add(verb)
            verb.add_done_callback(self._verbs.discard)
            while not (await asyncio.wait([verb], timeout=ALIVE_SECONDS))[0]:
                _send(writer, {"alive": True})
            _send(writer, verb.result())
            await writer.drain()
        except (OSError, ValueError, TimeoutError, asyncio.CancelledError):
            pass  # the caller went away, or never spoke our language
        finally:
            writer.close()

    async def _answer(self, request: dict[str, Any], progress: Progress) -> dict[str, Any]:
        try:
            return {"result": await self._do(request, progress)}
        except OSError as error:
            failure = disk_error(error)
        except ProviderError as error:
            failure = error
        except (KeyError, TypeError) as error:
            failure = ProviderError(
                f"The agent does not understand this request: {error!r}.", code="BadRequest", retry=False
            )
        except Exception as error:
            traceback.print_exc(file=sys.stderr)
            failure = ProviderError(
                f"The agent failed unexpectedly ({type(error).__name__}); its log says more. Nothing was lost. Retry.",
                code="AgentFailed",
            )
        return {"error": {"message": str(failure), "code": failure.code, "retry": failure.retry}}

    async def _do(self, request: dict[str, Any], progress: Progress) -> Any:
        verb, fleet = request["verb"], self._fleet
        if verb in ("observe", "weakness"):
            return await fleet.observe() if verb == "observe" else fleet.machine.isolation
        if verb == "prepare":
            return await fleet.prepare(str(request["version"]), progress)
        if verb in ("stop", "remove"):
            return await getattr(fleet, verb)(request["server_id"], int(request["fence"]), progress)
        if verb in CERTIFYING:
            texts = {name: str(request[name]) for name in CERTIFYING[verb]}
            return await getattr(fleet, verb)(request["server_id"], int(request["fence"]), **texts)
        if verb in ("ensure_storage", "configure", "start"):
            return await getattr(fleet, verb)(ServerSpec(**request["spec"]), int(request["fence"]), progress)
        return await self._of_instance(verb, request, progress)

    async def _of_instance(self, verb: str, request: dict[str, Any], progress: Progress) -> Any:
        instances = self._fleet.instances
        if verb == "recovering":
            return instances.recovering(str(request["server_id"]))
        if verb == "since":
            return await instances.since(str(request["server_id"]))
        fence = int(request["fence"])
        if verb == "recover":
            return await instances.recover(ServerSpec(**request["spec"]), request["recovery"], fence, progress)
        if verb == "cancel_recovery":
            return await instances.cancel(str(request["server_id"]), fence)
        if verb != "exchange":
            raise KeyError(verb)
        server_id, instance = str(request["server_id"]), str(request["instance"])
        return await instances.exchange(server_id, instance, fence, progress, restored=bool(request["restored"]))


def _send(writer: asyncio.StreamWriter, message: dict[str, Any]) -> None:
    with contextlib.suppress(OSError, RuntimeError):
        if not writer.is_closing():
            writer.write(json.dumps(message).encode() + b"\n")


def _peer(writer: asyncio.StreamWriter) -> int:
    """Return the user id of the process at the other end (unix(7), SO_PEERCRED)."""
    found = writer.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", found)[1])
