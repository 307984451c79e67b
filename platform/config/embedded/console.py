"""What the supervisor says in the terminal: one line for each step, with its duration."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator


class StartRefused(Exception):
    """Hearth can't start, or can't go on; the text is one clear sentence (or two) for the person at the terminal."""


def say(text: str = "") -> None:
    """Print a line. A terminal that was closed must not stop a shutdown in its middle."""
    with contextlib.suppress(OSError, ValueError):
        print(text, flush=True)  # noqa: T201 (the terminal is this program's page)


@contextlib.contextmanager
def step(title: str) -> Iterator[None]:
    """Show a step: its name while it lasts (in a terminal), its duration when it is done, a cross when it fails."""
    began = time.monotonic()
    live = sys.stdout.isatty()
    if live:
        _write(f"\r… {title}")
    try:
        yield
    except BaseException:
        _write(f"{_clear(live)}✗ {title}\n")
        raise
    _write(f"{_clear(live)}✓ {title} {time.monotonic() - began:.1f} s\n")


def _clear(live: bool) -> str:
    return "\r\x1b[K" if live else ""


def _write(text: str) -> None:
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.write(text)
        sys.stdout.flush()
