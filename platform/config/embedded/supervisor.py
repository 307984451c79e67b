"""The order in which Hearth's parts start and stop, and what happens when one of them dies."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from config.embedded import children
from config.embedded.console import StartRefused, say, step
from config.embedded.services import Postgres, Redis, tail_of
from config.embedded.state import Lock, ensure_secret, prepare_state
from observability import processes
from provisioning.providers.base import ProviderError
from provisioning.providers.local.environments import environment_dir
from provisioning.providers.local.paths import RuntimeFolderError, agent_socket, runtime_dir
from provisioning.providers.local.processes import Command, Unit, describe_exit, run
from provisioning.providers.local.provider import LocalProvider
from security.rootkey import ensure_root_key, key_files
from security.transport.places import internal_port
from tenants.releases import newest

LOOPBACK = ("127.", "::1", "localhost")
Before = Callable[[], Awaitable[None]] | None
PREPARE_TIMEOUT = 600.0
READY_TIMEOUT = 90.0
LONGEST_WAIT = 4.0
"""Seconds between two starts of a part that keeps crashing."""
SOCKET_LOOK = 3.0


class Supervisor:
    """Everything that one `make run` holds."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = settings
        self.state = Path(settings["HEARTH_STATE"]).expanduser().resolve()
        self.url: str = settings["HEARTH_PUBLIC_URL"] or f"http://localhost:{settings['HEARTH_PORT']}"
        self._services: list[tuple[str, Unit]] = []
        self._children: list[tuple[str, Unit]] = []
        self._sockets: list[tuple[str, Path, Unit]] = []
        self._links: dict[str, str] = {}
        self._stopping = False
        self._lock: Lock | None = None

    async def start(self) -> None:
        """Bring everything up, or raise `StartRefused` with what is in the way."""
        began = time.monotonic()
        with step(f"State folder {self.state}"):
            self._claim()
        database_url, redis_url = await self._start_services()
        env = children.django_environment(self.state, database_url, redis_url)
        environments = Path(self.settings["HEARTH_ENVIRONMENTS"] or self.state / "environments")
        await self._keep(children.agent(self.state, environments))
        await self._prepare(env)
        with step("Web server, worker, clock"):
            await self._keep(children.web(self.settings, env, self.state))
            await self._keep(children.worker(env, self.state))
            await self._keep(children.beat(env, self.state))
            await self._until_ready()
        self._welcome(time.monotonic() - began)
        await asyncio.gather(self._warm(environments), self._warn(), self._keep_sockets(), return_exceptions=True)

    def _claim(self) -> None:
        refuse_open_inbox(self.settings)
        prepare_state(self.state)
        self._lock = Lock(self.state)
        refuse_taken_port(self.settings["HEARTH_HOST"], self.settings["HEARTH_PORT"])
        refuse_taken_port(self.settings["HEARTH_INTERNAL_HOST"], internal_port(self.settings), "HEARTH_INTERNAL_PORT")
        self._lock.write(self.url)
        processes.begin(children.metrics_folder(self.state), children.COUNTING)
        ensure_secret(self.state / "secrets" / "secret-key")
        self._inbox = ensure_secret(self.state / "secrets" / "inbox-token")
        elsewhere = self.settings["HEARTH_KEY_FILE"] or self.settings["HEARTH_HSM_MODULE"]
        if not elsewhere and not key_files(key := self.state / "keys" / "root.key"):
            # Before the database: one without its key is taken for damaged, and a start may end between the two.
            ensure_root_key(key)

    async def _start_services(self) -> tuple[str, str]:
        """Start what no setting replaces, both at once; return their addresses."""
        urls = {"PostgreSQL": self.settings["DATABASE_URL"], "Redis": self.settings["REDIS_URL"]}
        try:
            own = {
                name: service(self.state)
                for name, service in (("PostgreSQL", Postgres), ("Redis", Redis))
                if not urls[name]
            }
        except RuntimeFolderError as error:
            raise StartRefused(str(error)) from None
        with step(" and ".join(own) or "PostgreSQL and Redis from the settings"):
            if isinstance(database := own.get("PostgreSQL"), Postgres):
                database.check_version()
            starts = [asyncio.create_task(self._serve(name, service)) for name, service in own.items()]
            try:
                await asyncio.gather(*starts)
            finally:
                for start in starts:
                    start.cancel()
                await asyncio.gather(*starts, return_exceptions=True)
        urls |= {name: service.url for name, service in own.items()}
        return urls["PostgreSQL"], urls["Redis"]

    async def _serve(self, name: str, service: Postgres | Redis) -> None:
        def make(command: Command, before: Callable[[], Awaitable[None]]) -> Unit:
            unit = self._unit(name, command, self._services, before)
            self._sockets.append((name, service.socket, unit))
            return unit

        await service.start(make)

    async def _keep(self, command: Command) -> None:
        await self._unit(command.name, command, self._children).start()

    def _unit(self, name: str, command: Command, group: list[tuple[str, Unit]], before: Before = None) -> Unit:
        # These few are Hearth itself: while one is down nobody is served, and another try costs a second.
        unit = Unit(
            command,
            on_exit=lambda code: self._died(name, command, code),
            before_start=before,
            longest_wait=LONGEST_WAIT,
        )
        group.append((name, unit))
        return unit

    def _died(self, name: str, command: Command, code: int) -> None:
        if self._stopping:
            return
        say(f"✗ {name} ended by itself ({describe_exit(code)}) and is started again. Its log: {command.log}")
        for line in tail_of(command.log, 3) if command.log else ():
            say(f"    {line}")

    async def _prepare(self, env: dict[str, str]) -> None:
        lines: list[str] = []
        log = self.state / "logs" / "prepare.log"

        def take(line: str) -> None:
            try:
                fields = json.loads(line)
            except ValueError:
                lines.append(line)
                return
            if "step" in fields:
                say(f"✓ {fields['step']} {fields['seconds']:.1f} s")
            elif "link" in fields:
                self._links[fields["link"]] = fields["path"]

        try:
            code = await run(children.prepare(env), line=take, timeout=PREPARE_TIMEOUT)
        except TimeoutError:
            raise StartRefused(f"Preparing the database took longer than {PREPARE_TIMEOUT:.0f} seconds.") from None
        if lines:
            log.write_text("\n".join(lines) + "\n", encoding="utf-8")
        if code != 0:
            said = next((line for line in reversed(lines) if line.strip()), describe_exit(code))
            raise StartRefused(f"{said.removeprefix('CommandError: ')} The whole output is in {log}.")

    async def _until_ready(self) -> None:
        end = time.monotonic() + READY_TIMEOUT
        reason = ""
        while time.monotonic() < end:
            with contextlib.suppress(OSError, ValueError):
                status, reason = await self._ask("/readyz")
                if status == 200:
                    return
            for name, unit in self._children:
                if unit.crashes >= 3:
                    raise StartRefused(
                        f"The process {name!r} does not start; see {unit.command.log}. Data is unharmed."
                    )
            await asyncio.sleep(0.05)
        raise StartRefused(
            f"Hearth did not get ready in {READY_TIMEOUT:.0f} seconds. {reason} Logs: {self.state / 'logs'}"
        )

    async def _ask(self, path: str) -> tuple[int, str]:
        host = self.settings["HEARTH_HOST"]
        target = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 (compared, not bound)
        reader, writer = await asyncio.wait_for(asyncio.open_connection(target, self.settings["HEARTH_PORT"]), 3)
        try:
            writer.write(f"GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n".encode())
            head, _, body = (await asyncio.wait_for(reader.read(), 10)).partition(b"\r\n\r\n")
        finally:
            writer.close()
        return int(head.split(b" ", 2)[1]), body.decode(errors="replace")[:500]

    def _welcome(self, seconds: float) -> None:
        say()
        if not self.settings["HEARTH_SMTP_URL"]:
            local = f"http://localhost:{self.settings['HEARTH_PORT']}"
            say(f"  The inbox, with the mails that Hearth would send: {local}/inbox/?token={self._inbox}")
        if path := self._links.get("staff"):
            say(f"  The first staff account (works once, for a day): {self.url}{path}")
        say("  Ctrl-C stops everything, homeservers too.")
        say(f"\nHearth is ready after {seconds:.1f} s: {self.url}\n")

    async def _warn(self) -> None:
        """Say it when servers are not isolated from one another; the agent knows."""
        with contextlib.suppress(ProviderError):
            if weakness := await asyncio.to_thread(LocalProvider(agent_socket(self.state)).weakness):
                say(f"! Homeservers on this machine are not isolated from one another. {weakness}")

    async def _keep_sockets(self) -> None:
        """Somebody may empty /tmp: then only a new start lets the others find the database and the broker again."""
        while True:
            await asyncio.sleep(SOCKET_LOOK)
            for name, path, unit in self._sockets:
                if unit.state == "running" and not path.exists() and not self._stopping:
                    say(f"✗ The socket of {name} was removed ({path}); {name} is started again.")
                    await unit.stop()
                    await unit.start()

    async def _warm(self, environments: Path) -> None:
        """Have the newest Synapse installed before somebody waits for it. The agent does it: it is the one writer."""
        version = newest().version
        if environment_dir(environments, version).exists():
            return
        began = time.monotonic()
        say(f"… Synapse {version} is being installed in the background; servers can be created already")
        provider = LocalProvider(agent_socket(self.state))
        try:
            await asyncio.to_thread(provider.prepare, version, lambda _: None)
        except ProviderError as error:
            if not self._stopping:
                say(f"✗ Synapse {version} is not installed yet. {error} The first new server tries again.")
        else:
            say(f"✓ Synapse {version} is installed ({time.monotonic() - began:.1f} s)")

    async def stop(self) -> None:
        """Stop everything, what serves people first."""
        self._stopping = True
        began = time.monotonic()
        say()
        ours = [pair for pair in self._children if pair[0] != "agent"]
        await _stop_all("web server, worker, clock", ours)
        await _stop_all("homeservers", [pair for pair in self._children if pair[0] == "agent"])
        await _stop_all("database and broker", self._services)
        if self._lock is not None:
            shutil.rmtree(runtime_dir(self.state), ignore_errors=True)  # sockets that nobody listens on any more
        say(f"Hearth has stopped after {time.monotonic() - began:.1f} s. Nothing of it runs any more.")

    async def kill(self) -> None:
        """Kill what is left, at once. Homeservers go with the agent, by its death signal."""
        await asyncio.gather(*(unit.kill() for _, unit in (*self._children, *self._services)))


async def _stop_all(title: str, units: Sequence[tuple[str, Unit]]) -> None:
    if units:
        with step(f"Stopped: {title}"):
            await asyncio.gather(*(unit.stop() for _, unit in units))


def refuse_open_inbox(settings: dict[str, Any]) -> None:
    """Refuse an address that others can reach while there is no mail server: the inbox page would show them mails."""
    if not settings["HEARTH_HOST"].startswith(LOOPBACK) and not settings["HEARTH_SMTP_URL"]:
        raise StartRefused(
            f"HEARTH_HOST is {settings['HEARTH_HOST']}, which other machines can reach, and no mail server is set. "
            "Nothing was started: sign-up needs mails, and the inbox page that shows them is for this machine only. "
            "Set HEARTH_SMTP_URL, or leave HEARTH_HOST at 127.0.0.1."
        )


def refuse_taken_port(host: str, port: int, name: str = "HEARTH_PORT") -> None:
    """Refuse an address that can't be listened on; `name` is the setting that chooses another port."""
    address = "127.0.0.1" if host == "localhost" else host
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError as error:
            raise StartRefused(
                f"Hearth can't listen on {host} port {port}: {os.strerror(error.errno or 0)}. Nothing was started. "
                f"Choose another port, for example: make run {name}={port + 1 if port < 65535 else 8000}"
            ) from None
