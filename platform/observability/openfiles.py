"""How many files and connections a process may have open. Imports nothing of Django."""

from __future__ import annotations

import resource

ENOUGH = 65_536


def raise_limit(wanted: int = ENOUGH) -> int:
    """Raise this process's soft limit (RLIMIT_NOFILE) to `wanted`, or to the hard limit where that is lower.

    A shell's soft limit is often 1024, kept low for programs that use select(2); a web server that has a thousand
    visitors would then accept nobody any more. A higher limit is left as it is. Children inherit it. Returns the limit.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # There is no infinity: Linux refuses more than fs.nr_open.
    top = min(wanted, hard)
    if soft >= top:
        return soft
    resource.setrlimit(resource.RLIMIT_NOFILE, (top, hard))
    return top
