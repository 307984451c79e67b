"""The answer to too many tries."""

from __future__ import annotations

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render

DEFAULT_WAIT = 60


def too_many(request: HttpRequest, seconds: int = DEFAULT_WAIT) -> HttpResponse:
    """Say that there were too many tries and when to come back (429 with Retry-After, in seconds)."""
    minutes = max(1, round(seconds / 60))
    response = render(request, "429.html", {"minutes": minutes}, status=429)
    response["Retry-After"] = str(seconds)
    return response
