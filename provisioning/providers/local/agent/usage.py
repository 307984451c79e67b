"""What a server's processes and folders use, from /proc and a walk like du's."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Use:
    """Bytes of memory, and CPU seconds since the processes started."""

    memory_bytes: int = 0
    cpu_seconds: float = 0.0


def measure(roots: dict[str, tuple[int, ...]]) -> dict[str, Use]:
    """Return the use of each named group of processes and all their descendants, in one pass over /proc."""
    parents: dict[int, list[int]] = {}
    ticks: dict[int, int] = {}
    for name in os.listdir("/proc"):  # noqa: PTH208 (thousands of entries)
        if not name.isdigit():
            continue
        with contextlib.suppress(OSError, ValueError, IndexError):
            fields = Path(f"/proc/{name}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
            parents.setdefault(int(fields[1]), []).append(int(name))
            # With what its ended children had used: a backend's work counts after its end too (proc(5), fields 14-17).
            ticks[int(name)] = sum(map(int, fields[11:15]))
    return {key: _sum(list(pids), parents, ticks) for key, pids in roots.items()}


def _sum(todo: list[int], parents: dict[int, list[int]], ticks: dict[int, int]) -> Use:
    memory, cpu = 0, 0
    while todo:
        pid = todo.pop()
        todo += parents.get(pid, [])
        cpu += ticks.get(pid, 0)
        memory += _memory(pid)
    return Use(memory, cpu / TICKS)


def _memory(pid: int) -> int:
    """Return the proportional set size: PostgreSQL's shared buffers count once, not once for each backend."""
    with contextlib.suppress(OSError, ValueError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    with contextlib.suppress(OSError, ValueError, IndexError):
        return int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]) * PAGE
    return 0


def disk(folders: Iterable[Path]) -> int:
    """Return the bytes on disk under `folders`; follows no link."""
    total, todo = 0, [str(folder) for folder in folders]
    while todo:
        with contextlib.suppress(OSError), os.scandir(todo.pop()) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):  # gone in between
                    if entry.is_dir(follow_symlinks=False):
                        todo.append(entry.path)
                    total += entry.stat(follow_symlinks=False).st_blocks * 512
    return total
