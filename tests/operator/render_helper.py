"""The render helper for tests: built once, kept by what it is built from."""

from __future__ import annotations

import functools
from pathlib import Path

MODULE = Path(__file__).resolve().parents[2] / "provisioning" / "operator" / "render"


@functools.cache
def helper() -> Path:
    """Return the helper's path."""
    return MODULE / "render"
