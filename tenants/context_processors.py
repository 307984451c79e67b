"""What every page knows: the person's organisations."""

from __future__ import annotations

from typing import Any

from django.http import HttpRequest


def organisations(request: HttpRequest) -> dict[str, Any]:
    """Give the navigation its list; evaluated only where a template uses it."""
    return {}
