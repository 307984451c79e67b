"""Which names objects may have, the same for every store."""

from __future__ import annotations

import re

from backups.engine.stores.base import StoreError

LONGEST = 512
"""Characters of a name; with a prefix of the bucket's it stays below S3's 1,024 bytes."""
_PART = r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,199}"
_NAME = re.compile(rf"{_PART}(?:/{_PART})*")
_PREFIX = re.compile(rf"(?:{_PART}/)*(?:{_PART})?")


def check_name(name: str) -> str:
    """Return `name` if an object may have it, or raise `StoreError` (`StoreMisused`).

    No part begins with a dot, so that none is `..` and none is a store's own; none is longer than a file's name may be.
    """
    if not is_name(name):
        raise misused(f"{name[: LONGEST + 1]!r} is no name of a stored object. Nothing was touched.")
    return name


def check_prefix(prefix: str) -> str:
    """Return `prefix` if names can begin with it, or raise `StoreError` (`StoreMisused`)."""
    if len(prefix) > LONGEST or not _PREFIX.fullmatch(prefix):
        raise misused(f"No name of a stored object begins with {prefix[: LONGEST + 1]!r}.")
    return prefix


def is_name(name: str) -> bool:
    """Return whether an object may have that name."""
    return len(name) <= LONGEST and _NAME.fullmatch(name) is not None


def is_part(part: str) -> bool:
    """Return whether one part of a name, between two slashes, may be this."""
    return re.fullmatch(_PART, part) is not None


def misused(message: str) -> StoreError:
    """Return the error for a call that can never succeed."""
    return StoreError(message, code="StoreMisused", retry=False)
