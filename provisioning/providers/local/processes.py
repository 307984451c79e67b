"""Start processes so that none outlives its parent, and keep them alive.

Every child gets a session of its own (a Ctrl-C in the terminal reaches only the supervisor) and a parent-death signal
(prctl(2), PR_SET_PDEATHSIG), so that `kill -9` of a parent takes its children along. That signal is bound to the
*thread* that started the child: run the event loop in the main thread. Imports no Django.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

LOG_LIMIT = 10 * 1024 * 1024
LOG_LOOK = 30.0
"""Seconds between two looks at the size of a running process's log."""
BACK_OFF_FIRST = 0.5
BACK_OFF_MOST = 30.0
STEADY = 60.0
"""Seconds after which a process counts as healthy again, and the next crash is retried at once."""
CANCEL_AGAIN = 1.0
State = Literal["stopped", "running", "backing-off", "refused"]


class Refused(Exception):
    """A unit must stay down. `reason` is one word for a machine, `message` a sentence for a person."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


@dataclass(frozen=True)
class Command:
    """One process to start. Without `log` its output goes to our standard error; `log` is rotated at 10 MB."""

    name: str
    argv: tuple[str, ...]
    cwd: Path
    env: Mapping[str, str]
    log: Path | None = None
    uid: int | None = None
    gid: int | None = None
    stop_signal: int = signal.SIGTERM
    stop_timeout: float = 15.0
    death_signal: int = signal.SIGKILL
    """What the kernel sends when our process dies. PostgreSQL prefers SIGQUIT: it then ends its own children."""
    capabilities: tuple[str, ...] = ()
    """Capabilities that survive the change to `uid`, such as `dac_read_search`."""
    oom_score: int = 0
    """Above 0: when memory runs out, the kernel ends this one before those with less (proc(5), oom_score_adj)."""


class Process:
    """One started process. `exited` is done with the exit code (negative: the signal) once it is reaped."""

    def __init__(self, command: Command, output: int | IO[bytes] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        self.exited: asyncio.Future[int] = self._loop.create_future()
        with contextlib.ExitStack() as stack:
            if output is None:
                output = stack.enter_context(open_log(command.log)) if command.log else sys.stderr.fileno()
            self._popen = subprocess.Popen(
                spawn_argv(command),
                cwd=command.cwd,
                env=dict(command.env),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.pid = self._popen.pid
        self.stdout = self._popen.stdout
        self._pidfd = os.pidfd_open(self.pid)
        self._loop.add_reader(self._pidfd, self._reap)

    def _reap(self) -> None:
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        # Before the leader is reaped its number can't be given to anybody else, so the group is surely ours.
        self.kill_group()
        self.exited.set_result(self._popen.wait())

    def kill_group(self) -> None:
        """SIGKILL for the process and all that it started and that kept its group."""
        if not self.exited.done():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)

    async def end(self, stop_signal: int, timeout: float) -> int:
        """Ask it to stop, wait `timeout` seconds, then kill the group. A cancelled wait kills at once."""
        if not self.exited.done():
            self._popen.send_signal(stop_signal)
        try:
            return await asyncio.wait_for(asyncio.shield(self.exited), timeout)
        except TimeoutError:
            self.kill_group()
            return await asyncio.shield(self.exited)
        except asyncio.CancelledError:
            self.kill_group()
            raise


class Unit:
    """One process kept alive: started again after 0.5 s, then twice as long each time up to `longest_wait` s.

    `on_exit(code)` is called at every end that nobody asked for. `before_start` runs before every start and may raise
    `Refused`; then the unit stays down until `start` is called again.
    """

    def __init__(
        self,
        command: Command,
        *,
        on_exit: Callable[[int], None] | None = None,
        before_start: Callable[[], Awaitable[None]] | None = None,
        longest_wait: float = BACK_OFF_MOST,
    ) -> None:
        self.command = command
        self.state: State = "stopped"
        self.pid: int | None = None
        self.started_at: float | None = None
        self.crashes = 0
        self.last_exit: int | None = None
        self.reason = ""
        self.message = ""
        self._on_exit = on_exit
        self._before_start = before_start
        self._longest_wait = longest_wait
        self._process: Process | None = None
        self._keeper: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Spawn it and keep it alive; returns after the first attempt. Does nothing when it is being kept already."""
        if self._keeper is not None and not self._keeper.done():
            return
        first: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        keeper = self._keeper = asyncio.create_task(self._keep(first), name=f"keep {self.command.name}")
        # A keeper that is cancelled before it ran at all says nothing.
        await asyncio.wait([first, keeper], return_when=asyncio.FIRST_COMPLETED)

    async def stop(self) -> None:
        """Stop it and keep it stopped. Twice is fine."""
        keeper, self._keeper = self._keeper, None
        # Python 3.11's wait_for forgets a cancellation that comes with its result (cpython #86296): it is said again.
        while keeper is not None and not keeper.done():
            keeper.cancel()
            await asyncio.wait([keeper], timeout=CANCEL_AGAIN)
        if self._process is not None:
            self.last_exit = await self._process.end(self.command.stop_signal, self.command.stop_timeout)
        self._down("stopped")

    def kill_hung(self) -> None:
        """Kill a process that runs but does nothing any more; it is then started again, as after a crash."""
        if self._process is not None:
            self._process.kill_group()

    async def kill(self) -> None:
        """End it at once, in the middle of a `stop` too."""
        if self._process is not None:
            self._process.kill_group()
        await self.stop()

    async def _keep(self, first: asyncio.Future[None]) -> None:
        delay = BACK_OFF_FIRST
        try:
            while True:
                began = time.monotonic()
                if not await self._attempt():
                    return
                if not first.done():
                    first.set_result(None)
                if self._process is not None:
                    self._crashed(await self._end_of(self._process))
                if time.monotonic() - began >= STEADY:
                    delay = BACK_OFF_FIRST
                await asyncio.sleep(delay)
                delay = min(delay * 2, self._longest_wait)
        finally:
            if not first.done():
                first.set_result(None)

    async def _attempt(self) -> bool:
        """Try one start. False when it was refused; a start that failed counts as a crash."""
        try:
            if self._before_start is not None:
                await self._before_start()
            self._process = Process(self.command)
        except Refused as refusal:
            self._down("refused", refusal.reason, refusal.message)
            return False
        except Exception as error:  # whatever stops a start is retried, and shown: the keeper itself must not die
            self.crashes += 1
            self._down("backing-off", "StartFailed", f"{self.command.name} could not be started: {error}")
            return True
        self.state, self.pid, self.started_at = "running", self._process.pid, time.time()
        self.reason = self.message = ""
        return True

    async def _end_of(self, process: Process) -> int:
        """Wait for its end, and keep its log from filling the disk meanwhile."""
        while not (await asyncio.wait([process.exited], timeout=LOG_LOOK))[0]:
            if self.command.log is not None:
                cut_log(self.command.log)
        return process.exited.result()

    def _crashed(self, code: int) -> None:
        self.crashes += 1
        self.last_exit = code
        self._down("backing-off", "Crashed", f"{self.command.name} ended by itself ({describe_exit(code)}).")
        if self._on_exit is not None:
            self._on_exit(code)

    def _down(self, state: State, reason: str = "", message: str = "") -> None:
        self.state, self.reason, self.message = state, reason, message
        self.pid = self.started_at = self._process = None


async def run(command: Command, *, line: Callable[[str], None] | None = None, timeout: float) -> int:
    """Run a command to its end and return its exit code. `TimeoutError` after `timeout` seconds, its group killed.

    With `line` each line of its output is handed over (and appended to `command.log`, if set). Whatever it leaves
    running in its group is killed when it ends.
    """
    process = Process(command, subprocess.PIPE if line else None)
    reader = asyncio.create_task(read_lines(process, command.log, line)) if line else None
    try:
        code = await asyncio.wait_for(asyncio.shield(process.exited), timeout)
        if reader is not None:
            # A child that left the group may hold the pipe open; its lines are not worth waiting for.
            await asyncio.wait([reader], timeout=2)
        return code
    finally:
        process.kill_group()
        await asyncio.shield(process.exited)
        if reader is not None:
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)


async def read_lines(process: Process, log: Path | None, line: Callable[[str], None]) -> None:
    """Hand each line of its output over, and append it to `log` too. The process was started with a pipe."""
    assert process.stdout is not None  # noqa: S101 (for the type checker: the caller asked for a pipe)
    reader = asyncio.StreamReader()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), process.stdout
    )
    try:
        with open_log(log) if log else contextlib.nullcontext() as copy:
            rest = b""
            while chunk := await reader.read(65536):
                if copy is not None:
                    copy.write(chunk)
                *whole, rest = (rest + chunk).replace(b"\r", b"\n").split(b"\n")
                for one in filter(None, whole):
                    line(one.decode(errors="replace"))
            if rest:
                line(rest.decode(errors="replace"))
    finally:
        transport.close()


def open_log(path: Path) -> IO[bytes]:
    """Open a log to append to, mode 0600; one past 10 MB becomes `<name>.1` first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        if path.stat().st_size > LOG_LIMIT:
            path.replace(path.with_name(path.name + ".1"))
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600), "ab", buffering=0)


def cut_log(path: Path) -> None:
    """Move the content of a log past 10 MB to `<name>.1` while somebody writes it: all of ours append."""
    with contextlib.suppress(OSError):
        if path.stat().st_size <= LOG_LIMIT:
            return
        # On a full disk there may be no place for the copy; the room is then worth more than the lines.
        with contextlib.suppress(OSError):
            shutil.copy2(path, path.with_name(path.name + ".1"))
        os.truncate(path, 0)


def spawn_argv(command: Command) -> list[str]:
    """Return the whole command line: `setpriv` sets identity and death signal, then becomes the command."""
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        raise FileNotFoundError("The program setpriv (package util-linux) is missing; install it.")
    argv = [setpriv, "--pdeathsig", signal.Signals(command.death_signal).name.removeprefix("SIG")]
    if command.uid is not None:
        argv += ["--reuid", str(command.uid), "--regid", str(command.gid or command.uid), "--clear-groups"]
        kept = ",".join(["-all", *(f"+{name}" for name in command.capabilities)])
        argv += ["--inh-caps", kept, "--ambient-caps", kept, "--no-new-privs"]
        if command.capabilities:
            # Else access(2), with which PostgreSQL looks at its own files, would leave the capabilities out.
            argv += ["--securebits", "+no_setuid_fixup"]
    # If we died before the death signal was set, nobody will send it: the shell notices that its parent changed.
    victim = f"echo {command.oom_score} > /proc/self/oom_score_adj; " if command.oom_score else ""
    script = f'[ "$PPID" = "$0" ] || exit; {victim}exec "$@"'
    return [*argv, "--", "/bin/sh", "-c", script, str(os.getpid()), *command.argv]


def describe_exit(code: int) -> str:
    """Return "exit code 3" or "signal SIGKILL"."""
    if code >= 0:
        return f"exit code {code}"
    with contextlib.suppress(ValueError):
        return f"signal {signal.Signals(-code).name}"
    return f"signal {-code}"


def can_drop_privileges(path: Path) -> str:
    """Return "" if unprivileged user ids can be used for things under `path`, else the reason why not."""
    if os.geteuid() != 0:
        return "Hearth was not started as root, so all its processes run as one user."
    if shutil.which("setpriv") is None:
        return "The program setpriv (package util-linux) is missing."
    if closed := closed_folder(path):
        return f"The folder {closed} is closed to other users."
    if python_for_others() is None:
        return "There is no Python that other users may run; install the system's python3 package."
    return ""


def passage(path: Path) -> tuple[str, ...]:
    """Return the capabilities that let an unprivileged user of ours reach `path` where a folder above it is closed.

    For Hearth's own PostgreSQL, which refuses to be root: a checkout under /root must work. Never for a customer's
    server.
    """
    if os.geteuid() != 0 or closed_folder(path) is None:
        return ()
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("CapEff:"))
    held = int(line.split()[1], 16)
    # Containers commonly keep dac_override (capability 1) and drop dac_read_search (2), which is all that is needed.
    return ("dac_read_search",) if held & (1 << 2) else ("dac_override",)


def closed_folder(path: Path) -> Path | None:
    """Return the first folder from the root to above `path` that other users can't pass, or None."""
    for folder in reversed(path.resolve().parents):
        if folder.exists() and not folder.stat().st_mode & stat.S_IXOTH:
            return folder
    return None


def python_for_others() -> Path | None:
    """Return a Python (3.11 or 3.12) that every user of this machine may run, or None."""
    for name in (sys.executable, "/usr/bin/python3.12", "/usr/bin/python3.11"):
        python = Path(name).resolve()
        if python.exists() and python.stat().st_mode & stat.S_IXOTH and closed_folder(python) is None:
            return python
    return None
