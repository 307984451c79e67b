"""The process that brings backups back into an instance: started, followed, and ended, over the agent's own end too.

    recovery/wanted.json    what is asked for; gone when it is over, since it holds passwords
    recovery/request.json   the same with where things are now, which another start of the agent may see elsewhere
    recovery/outcome.json   how it stands: while it says `running`, the agent goes on with it at each of its starts
    recovery/work/          the program's own, with which it goes on where it was cut off
    recovery/export/        what is given out in open formats, until it is sealed in the store

The program speaks lines of JSON: `restore-begins`, `restore` about once a second, and at its end `restored`,
`exported` or `restore-failed`. One that ends without either has crashed, and is started again a few times.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import math
import signal
import subprocess
from collections.abc import Mapping
from typing import Any

from provisioning.providers.base import Recovering
from provisioning.providers.local import configuration
from provisioning.providers.local.agent import engine
from provisioning.providers.local.agent.credentials import Credentials
from provisioning.providers.local.agent.database import SUPERUSER
from provisioning.providers.local.agent.files import write
from provisioning.providers.local.agent.folder import Folder
from provisioning.providers.local.keys import verify_key
from provisioning.providers.local.processes import Process, describe_exit, read_lines
from security.durable import replace_file

OURS = ("wanted.json", "request.json", "outcome.json", "work", "export")
STOP_SECONDS = 20.0
CRASHES = 5
"""In one recovery, after which it has failed; between them the agent waits 1, 2, 3, … seconds."""
SPARE = 2**30
"""Bytes of the disk that a recovery leaves to the servers that live here."""
RESTORE, SETTLE, EXPORT = "restore", "settle", "export"


class Recovery:
    """Of one instance. The caller holds the server's lock around each method but `seen`, `restored` and `running`."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self.path = folder.path / "recovery"
        self._note: dict[str, Any] = {}
        with contextlib.suppress(OSError, ValueError):
            self._note = json.loads((self.path / "outcome.json").read_text(encoding="utf-8"))
        self.seen = _told(self._note)
        """How far it is."""
        self._task: asyncio.Task[None] | None = None
        self._process: Process | None = None

    @property
    def restored(self) -> bool:
        """Whether there is something whole in the instance, that a server may run on."""
        return bool(self._note.get("restored")) and not self.running

    @property
    def running(self) -> bool:
        """Whether its program works, or is to work as soon as the agent can start it."""
        return self.seen.state == "running"

    async def begin(self, wanted: Mapping[str, Any], secrets: Mapping[str, str]) -> None:
        """Start it, or go on; where it is done only settle it again. Raises `ProviderError`."""
        files = engine.checked(wanted, "request", OURS)
        request = {"signing_key_id": verify_key(secrets["signing_key"])[0], **wanted["request"]}
        await self.pause()
        engine.make_folder(self.path, self._folder.unit.gid)
        for name, data in files.items():
            replace_file(self.path / name, data)
        export = dict(wanted.get("export") or {})
        asked = {"request": request, "holder": str(wanted["holder"]), "password": secrets["database"], "export": export}
        write(self.path / "wanted.json", json.dumps(asked))
        restored = bool(self._note.get("restored"))
        verb = EXPORT if export else SETTLE if restored else RESTORE
        note = {"module": str(wanted["module"]), "verb": verb, "files": sorted(files), "restored": restored}
        self._write({**note, "state": "running"})
        self.resume()

    def resume(self) -> None:
        """Go on with it if it is not over."""
        if self.running and self._task is None:
            name = f"recovery of {self._folder.unit.server_id}"
            self._task = asyncio.create_task(self._keep(), name=name)

    async def pause(self) -> None:
        """End its program; it goes on with the next `resume`, of this agent or the next one."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def cancel(self) -> None:
        """End it for good. What was fetched stays."""
        await self.pause()
        if self.running:
            self._over({"state": "cancelled"})

    async def _keep(self) -> None:
        """Run its program until it has said how it ended, and write that down."""
        last: dict[str, Any] = {}
        end = ""
        for crash in range(1, CRASHES + 1):
            try:
                last, code = await self._run()
                end = describe_exit(code)
            except (OSError, ValueError) as error:
                end = str(error)
            if last:
                break
            await asyncio.sleep(crash)
        text = (
            f"The program that restores ended by itself {CRASHES} times, the last time with: {end}. What ran before "
            f"was not touched.{self._folder.log_tail('recovery')}"
        )
        while True:
            with contextlib.suppress(OSError):  # a full disk: soon again
                self._over(last or {"state": "failed", "code": "RestoreCrashed", "text": text, "retry": True})
                return
            await asyncio.sleep(CRASHES)

    async def _run(self) -> tuple[dict[str, Any], int]:
        """Run it once; return its last word, empty if it said none, and its exit code."""
        last: dict[str, Any] = {}
        log = self._folder.path / "logs" / "recovery.log"
        note = self._note
        write(self.path / "request.json", json.dumps(self._request()))
        command = engine.command(
            f"Recovery of {self._folder.unit.server_name}",
            (note["module"], note["verb"], str(self.path / "request.json")),
            log=log,
            stop_timeout=STOP_SECONDS,
            oom_score=700,  # whoever lives here comes first
        )
        process = Process(command, subprocess.PIPE)
        reader = asyncio.create_task(read_lines(process, log, lambda line: last.update(self._hear(line))))
        try:
            code = await asyncio.shield(process.exited)
            await asyncio.wait([reader], timeout=2)
        except asyncio.CancelledError:
            await process.end(signal.SIGTERM, STOP_SECONDS)
            raise
        finally:
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)
        return last, code

    def _hear(self, line: str) -> dict[str, Any]:
        """Take one line of its output; return what it says of its end."""
        try:
            event = json.loads(line)
            kind = event.get("event")
        except (ValueError, AttributeError):
            return {}  # something that went wrong, for the log
        if kind == "restored":
            found = {name: value for name, value in event.items() if name not in ("at", "event")}
            return {"state": "done", "result": found, "restored": True}
        if kind == "exported":  # and nothing is left here that could run
            return {"state": "done", "result": {name: event[name] for name in event if name not in ("at", "event")}}
        if kind == "restore-failed":
            if event.get("code") == "Cancelled":
                return {"state": "cancelled"}
            return {"state": "failed", **{name: event.get(name) for name in ("code", "text", "retry")}}
        if kind == "restore-begins":
            total = sum(int(event.get(f"{part}_bytes") or 0) for part in ("base", "wal", "media"))
            self.seen = dataclasses.replace(self.seen, step="plan", total_bytes=total)
        elif kind == "restore":
            left = event.get("seconds_left")
            self.seen = dataclasses.replace(
                self.seen,
                step=str(event.get("step", "")),
                done_bytes=int(event.get("done_bytes") or 0),
                total_bytes=int(event.get("total_bytes") or self.seen.total_bytes),
                seconds_left=None if left is None else math.ceil(left),
            )
        return {}

    def _over(self, last: Mapping[str, Any]) -> None:
        """Write down how it ended, and remove what is secret."""
        before = self.seen
        self._write({**self._note, **last})
        self._task = None
        self.seen = dataclasses.replace(self.seen, step=before.step, total_bytes=before.total_bytes)
        for name in ("wanted.json", "request.json", *self._note["files"]):
            (self.path / name).unlink(missing_ok=True)

    def _write(self, note: dict[str, Any]) -> None:
        write(self.path / "outcome.json", json.dumps(note))
        self.seen, self._note = _told(note), note

    def _request(self) -> dict[str, Any]:
        """Return what is asked for, with all that this machine decides. Raises `OSError`, `ValueError`."""
        folder = self._folder
        asked = json.loads((self.path / "wanted.json").read_text(encoding="utf-8"))
        request, holder = asked["request"], asked["holder"]
        roles = {SUPERUSER: folder.unit.superuser_password, configuration.ROLE: asked["password"]}
        whole = {
            **request,
            "data": str(folder.data),
            "media": str(folder.places.media),
            "configuration": "",
            "work": str(self.path / "work"),
            "spare": SPARE,
            "superuser": SUPERUSER,
            "tools": engine.tools(folder),
            "hearth": engine.hearth(Credentials(folder.machine.servers / holder / "identity", holder)),
            "settle": {**(request.get("settle") or {}), "passwords": roles},
        }
        export = asked.get("export") or {}
        return {**export, "request": whole, "into": str(self.path / EXPORT)} if export else whole


def _told(note: Mapping[str, Any]) -> Recovering:
    state = str(note.get("state", "none"))
    return Recovering(
        state=state,
        step="plan" if state == "running" else "",
        code=str(note.get("code") or "") if state == "failed" else "",
        text=str(note.get("text") or "") if state == "failed" else "",
        retry=bool(note.get("retry")) and state == "failed",
        result=note.get("result") or {} if state == "done" else {},
    )
