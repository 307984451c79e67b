"""pg_receivewal, kept alive: the stream of WAL into a folder, by a slot that makes the server wait for it.

It is started without its own loop, so that each end is seen here and its cause is known. It dies with the thread that
started it (prctl(2), PR_SET_PDEATHSIG), which lives as long as it is wanted.
"""

from __future__ import annotations

import contextlib
import os
import stat
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

from backups.engine.database.postgres import Postgres, tool
from backups.engine.names import SEGMENT_SIZE
from backups.engine.progress import Progress
from backups.engine.settings import Tools
from provisioning.providers.local.processes import Command, describe_exit, spawn_argv

STATUS_SECONDS = 1
"""How often it tells the server how far it has written: that is what a tail is measured by."""
FIRST_WAIT, LONGEST_WAIT, STEADY, STEADY_SOON = 0.5, 10.0, 30.0, 3.0
LAST_LINES = 4
END_SECONDS = 3.0
PARTIAL = ".partial"


class Receiver:
    """One pg_receivewal that writes to `folder`, until `stop`."""

    def __init__(
        self,
        postgres: Postgres,
        tools: Tools,
        folder: Path,
        progress: Progress,
        *,
        before_start: Callable[[], None],
        on_end: Callable[[], None],
    ) -> None:
        self._postgres = postgres
        self._tools = tools
        self._folder = folder
        self._progress = progress
        self._before_start = before_start
        self._on_end = on_end
        self._stop = threading.Event()
        self._process: subprocess.Popen[str] | None = None
        self._thread = threading.Thread(target=self._keep, name="receiver", daemon=True)
        self._began = 0.0
        self.trouble = ""
        """What it said when it ended by itself last."""

    @property
    def pid(self) -> int | None:
        """Its process, while it runs."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    @property
    def is_steady(self) -> bool:
        """Whether it has run for a while."""
        return self.pid is not None and time.monotonic() - self._began > STEADY_SOON

    def start(self) -> None:
        """Make the folder and keep a receiver in it."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self._tools.uid is not None:
            os.chown(self._folder, self._tools.uid, self._tools.gid or self._tools.uid, follow_symlinks=False)
        self._thread.start()

    def stop(self) -> None:
        """End it, and return when it is gone."""
        self._stop.set()
        end = time.monotonic() + END_SECONDS
        while self._thread.is_alive():
            if (process := self._process) is not None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill() if time.monotonic() > end else process.terminate()
            self._thread.join(0.2)

    def _keep(self) -> None:
        wait = FIRST_WAIT
        while not self._stop.is_set():
            self._began = began = time.monotonic()
            try:
                said = self._run()
            except OSError as error:
                said = f"it could not be started: {error}"
            if self._stop.is_set():
                return
            wait = FIRST_WAIT if time.monotonic() - began > STEADY else min(wait * 2, LONGEST_WAIT)
            self.trouble = said
            self._progress.say("receiver-ended", text=said, again_in=wait)
            self._on_end()
            self._stop.wait(wait)

    def _run(self) -> str:
        remove_unfinished(self._folder)
        self._before_start()
        with subprocess.Popen(
            spawn_argv(command := self._command()),
            cwd="/",
            env=dict(command.env),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
            text=True,
            errors="replace",
        ) as process:
            self._process = process
            assert process.stderr is not None  # noqa: S101 (for the type checker: it is a pipe)
            last: list[str] = []
            for line in process.stderr:
                last = [*last, line.strip()][-LAST_LINES:]
                if "starting log streaming" in line:
                    self._progress.say("receiving", text=last.pop())
            code = process.wait()
        self._process = None
        return f"{' '.join(last) or 'It said nothing.'} ({describe_exit(code)})"

    def _command(self) -> Command:
        slot = self._postgres.settings.slot
        words = ("-D", str(self._folder), "--slot", slot, "--no-loop", "-w", "--verbose")
        it = self._tools
        return tool(
            "pg_receivewal",
            (*words, "--status-interval", str(STATUS_SECONDS)),
            self._postgres,
            it.programs,
            uid=it.uid,
            gid=it.gid,
            capabilities=it.capabilities,
            oom_score=300,
        )


def remove_unfinished(folder: Path) -> None:
    """Remove a first file that a full disk left short: pg_receivewal would refuse it for ever, and begins it anew."""
    for path in folder.glob(f"*{PARTIAL}"):
        found = path.lstat()
        if not stat.S_ISREG(found.st_mode) or found.st_size not in (0, SEGMENT_SIZE):
            path.unlink()
