"""Names that strangers chose, made harmless for whoever opens an export. Imports no Django."""

from __future__ import annotations

import re

_LONGEST_NAME = 180
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")


def file_name(name: str) -> str:
    """Return a name that a file may have anywhere."""
    found = re.sub(r"[\x00-\x1f/\\:*?\"<>|]", "_", name).strip(". ")
    while len(found.encode()) > _LONGEST_NAME:
        found = found[1:]
    return found or "content"


def cell(text: str) -> str:
    """Return a text that no spreadsheet takes for a formula, which it would carry out."""
    return f"'{text}" if text.startswith(_FORMULA) else text
