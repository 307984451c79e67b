"""Children die with their parent, come back after a crash, and stop when told to."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from provisioning.providers.local import processes
from provisioning.providers.local.processes import Command, Refused, Unit, can_drop_privileges, passage, run

ROOT = Path(__file__).resolve().parents[2]


def shell(tmp_path: Path, script: str, *, stop_timeout: float = 5, log: Path | None = None) -> Command:
    return Command(
        "test", ("/bin/sh", "-c", script), tmp_path, {"PATH": os.environ["PATH"]}, log, stop_timeout=stop_timeout
    )


async def until(condition: Callable[[], object], *, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        await asyncio.sleep(0.02)


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def pids(path: Path, count: int) -> list[int]:
    words = path.read_text().split() if path.exists() else []
    return [int(word) for word in words] if len(words) >= count else []


PARENT = """
import asyncio, sys
from pathlib import Path
from provisioning.providers.local.processes import Command, Unit

async def main():
    tmp = Path(sys.argv[1])
    script = "trap '' TERM INT HUP; echo $$ >> pids; while :; do sleep 0.1; done"
    for n in range(3):
        await Unit(Command(f"u{n}", ("/bin/sh", "-c", script), tmp, {}, tmp / "log")).start()
    await asyncio.sleep(60)

asyncio.run(main())
"""


def test_killing_the_parent_leaves_no_child(tmp_path: Path) -> None:
    env = {"PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"]}
    with subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path)], env=env) as parent:
        try:
            asyncio.run(until(lambda: pids(tmp_path / "pids", 3)))
            children = pids(tmp_path / "pids", 3)
            assert not any(gone(pid) for pid in children)
        finally:
            parent.kill()
    asyncio.run(until(lambda: all(gone(pid) for pid in children)))


def test_a_crash_is_counted_told_and_retried_later_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "BACK_OFF_FIRST", 0.1)
    exits: list[int] = []

    async def main() -> Unit:
        unit = Unit(shell(tmp_path, "date +%s.%N >> starts; exit 3"), on_exit=exits.append)
        await unit.start()
        await until(lambda: unit.crashes == 4)
        assert (unit.state, unit.pid, unit.last_exit, unit.reason) == ("backing-off", None, 3, "Crashed")
        assert "exit code 3" in unit.message
        await unit.stop()
        return unit

    unit = asyncio.run(main())
    assert unit.state == "stopped"
    assert exits == [3, 3, 3, 3]
    starts = [float(word) for word in (tmp_path / "starts").read_text().split()]
    gaps = [later - earlier for earlier, later in itertools.pairwise(starts)]
    assert [gap >= least for gap, least in zip(gaps, (0.1, 0.2, 0.4), strict=True)] == [True] * 3


def test_a_killed_process_comes_back_with_another_pid(tmp_path: Path) -> None:
    async def main() -> None:
        unit = Unit(shell(tmp_path, "sleep 60"))
        await unit.start()
        first = unit.pid
        assert first is not None
        assert unit.started_at is not None
        os.kill(first, signal.SIGKILL)
        await until(lambda: unit.state == "running" and unit.pid not in {None, first})
        assert (unit.crashes, unit.last_exit) == (1, -9)
        await unit.stop()

    asyncio.run(main())


def test_stop_kills_the_whole_group_of_one_that_does_not_listen(tmp_path: Path) -> None:
    async def main() -> None:
        script = "trap '' TERM; sh -c 'trap \"\" TERM; echo $$ >> pids; sleep 60' & echo $$ >> pids; wait; sleep 60"
        unit = Unit(shell(tmp_path, script, stop_timeout=0.3))
        await unit.start()
        await until(lambda: pids(tmp_path / "pids", 2))
        await asyncio.gather(unit.stop(), unit.stop())
        await until(lambda: all(gone(pid) for pid in pids(tmp_path / "pids", 2)))
        assert (unit.state, unit.last_exit, unit.crashes) == ("stopped", -9, 0)
        await unit.stop()

    asyncio.run(main())


def test_stop_in_the_middle_of_a_start_leaves_nothing(tmp_path: Path) -> None:
    async def slow() -> None:
        await asyncio.sleep(30)

    async def main() -> None:
        unit = Unit(shell(tmp_path, "sleep 60"), before_start=slow)
        start = asyncio.create_task(unit.start())
        await asyncio.sleep(0.05)
        await unit.stop()
        await asyncio.wait_for(start, 1)
        assert (unit.state, unit.pid) == ("stopped", None)

    asyncio.run(main())


def test_stop_ends_also_a_start_that_forgets_a_cancellation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "CANCEL_AGAIN", 0.05)

    async def forgetful() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            (tmp_path / "forgotten").touch()

    async def main() -> None:
        unit = Unit(shell(tmp_path, "echo $$ > pids; exec sleep 60"), before_start=forgetful)
        starting = asyncio.create_task(unit.start())
        await asyncio.sleep(0.1)
        await asyncio.wait_for(unit.stop(), 20)
        await asyncio.wait_for(starting, 20)
        assert (tmp_path / "forgotten").exists()
        assert unit.state == "stopped"
        assert all(gone(pid) for pid in pids(tmp_path / "pids", 1))

    asyncio.run(main())


def test_a_start_that_is_stopped_at_once_ends(tmp_path: Path) -> None:
    async def main() -> None:
        unit = Unit(shell(tmp_path, "exec sleep 60"))
        starting = asyncio.create_task(unit.start())
        await asyncio.sleep(0)  # the keeper is made, and has not run yet
        await asyncio.wait_for(unit.stop(), 20)
        await asyncio.wait_for(starting, 20)
        assert unit.state == "stopped"

    asyncio.run(main())


def test_a_refused_start_stays_down_and_says_why(tmp_path: Path) -> None:
    async def refuse() -> None:
        raise Refused("SigningKeyMismatch", "The signing key is another one.")

    async def main() -> None:
        unit = Unit(shell(tmp_path, "sleep 60"), before_start=refuse)
        await unit.start()
        assert (unit.state, unit.reason, unit.pid) == ("refused", "SigningKeyMismatch", None)
        assert unit.message == "The signing key is another one."
        assert unit.crashes == 0
        await unit.stop()

    asyncio.run(main())


def test_a_program_that_is_missing_is_retried_and_named(tmp_path: Path) -> None:
    async def main() -> None:
        unit = Unit(Command("nobody", ("/nonexistent",), tmp_path / "missing", {}))
        await unit.start()
        assert (unit.state, unit.reason) == ("backing-off", "StartFailed")
        assert "nobody could not be started" in unit.message
        await unit.stop()

    asyncio.run(main())


def test_output_goes_to_a_log_that_is_rotated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "LOG_LIMIT", 3)
    log = tmp_path / "logs" / "test.log"
    for word in ("first", "second"):
        lines: list[str] = []
        assert (
            asyncio.run(run(shell(tmp_path, f"echo {word}; echo {word} >&2", log=log), line=lines.append, timeout=60))
            == 0
        )
        assert lines == [word, word]
    assert log.read_text() == "second\nsecond\n"
    assert log.with_name("test.log.1").read_text() == "first\nfirst\n"
    assert log.stat().st_mode & 0o777 == 0o600


def test_the_log_of_a_process_that_never_ends_stays_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "LOG_LIMIT", 2000)
    monkeypatch.setattr(processes, "LOG_LOOK", 0.05)
    log, old = tmp_path / "test.log", tmp_path / "test.log.1"

    async def talk() -> None:
        unit = Unit(shell(tmp_path, "while echo 0123456789; do sleep 0.001; done", log=log))
        await unit.start()
        await until(old.exists)
        await until(lambda: 0 < log.stat().st_size < 2000)
        assert unit.crashes == 0
        await unit.stop()

    asyncio.run(talk())
    assert set(log.read_text().split()) == {"0123456789"}
    assert old.stat().st_mode & 0o777 == 0o600


def test_a_command_that_takes_too_long_is_killed_with_its_children(tmp_path: Path) -> None:
    with pytest.raises(TimeoutError):
        asyncio.run(run(shell(tmp_path, "sleep 60 & echo $! > pids; wait"), timeout=2))
    asyncio.run(until(lambda: all(gone(pid) for pid in pids(tmp_path / "pids", 1))))
    assert asyncio.run(run(shell(tmp_path, "exit 7"), timeout=60)) == 7


def test_whether_other_users_can_be_used(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    answer = can_drop_privileges(closed / "state")
    if os.geteuid() != 0:
        assert "not started as root" in answer
    else:
        assert "is closed to other users" in answer
        assert can_drop_privileges(Path("/var/lib/hearth")) == ""


def test_another_user_is_set_without_groups_or_capabilities(tmp_path: Path) -> None:
    lines: list[str] = []
    script = "id; grep -E 'CapEff|NoNewPrivs' /proc/self/status"
    command = Command("id", ("/bin/sh", "-c", script), Path("/"), {}, uid=61234)
    code = asyncio.run(run(command, line=lines.append, timeout=60))
    if os.geteuid() != 0:  # only root can; anybody else is told, and nothing runs as the wrong user
        assert code != 0
        assert "Operation not permitted" in lines[0]
        return
    assert lines[0] == "uid=61234 gid=61234 groups=61234"
    assert [line.split()[1].strip("0") for line in lines[1:]] == ["", "1"]


def test_a_closed_folder_can_be_reached_with_what_passage_says(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    (closed / "open").mkdir(parents=True)
    closed.chmod(0o700)
    lines: list[str] = []
    # test(1) asks with access(2), as PostgreSQL's programs do.
    words = ("/bin/sh", "-c", 'test -x "$0" && grep CapEff /proc/self/status', str(closed / "open"))
    uid = 61234 if os.geteuid() == 0 else None
    command = Command("look", words, Path("/"), {"PATH": os.defpath}, uid=uid, capabilities=passage(closed / "open"))
    assert asyncio.run(run(command, line=lines.append, timeout=60)) == 0
    assert int(lines[0].split()[1], 16) in {0, 1 << 1, 1 << 2}
