"""The render helper for tests: built once for all checkouts, and again when what it is built from has changed."""

from __future__ import annotations

import fcntl
import functools
import os
import subprocess
import tempfile
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

from tests.cluster.tools import Missing, cache, go

MODULE = Path(__file__).resolve().parents[2] / "provisioning" / "operator" / "render"
NAME = "render-helper"


@functools.cache
def helper() -> Path:
    """Return the helper's path. `Missing` says what to do."""
    place = _place()
    if not place.exists():
        raise Missing("the operator's render helper is not there. Run: make test (needs Go and its modules).")
    return place


def ensure(say: Callable[[str], None] = print) -> Path:
    """Return the helper's path, built first if need be. `Missing` says what went wrong."""
    place = _place()
    place.parent.mkdir(parents=True, exist_ok=True)
    with (cache() / f".{NAME}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not place.exists():
            say("Building the operator's render helper (once; about a minute)")
            _build(place)
    return place


def _place() -> Path:
    given = os.environ.get("TEST_CLUSTER_BIN")
    if given and (path := Path(given) / NAME).exists():
        return path
    content = b"\0".join(path.read_bytes() for path in sorted((*MODULE.glob("*.go"), *MODULE.glob("go.*"))))
    return cache() / f"{NAME}-{sha256(content).hexdigest()[:16]}" / NAME


def _build(place: Path) -> None:
    with tempfile.TemporaryDirectory(prefix=".building-", dir=cache()) as folder:
        built = Path(folder) / NAME
        words = [str(go()), "build", "-trimpath", "-ldflags", "-s -w", "-o", str(built), "."]
        environment = os.environ | {"CGO_ENABLED": "0"}
        done = subprocess.run(words, cwd=MODULE, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise Missing(f"the operator's render helper can't be built:\n{done.stderr[-2000:]}")
        built.replace(place)
