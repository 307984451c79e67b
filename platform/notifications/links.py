"""Addresses in mails. They come from the settings, never from a request, whose Host header anybody can forge."""

from __future__ import annotations

from urllib.parse import urlsplit

from django.conf import settings


def public_url(location: str = "/") -> str:
    """Return a path, or the path of an address that a library made, as people outside reach it."""
    parts = urlsplit(location)
    query = f"?{parts.query}" if parts.query else ""
    return f"{settings.PUBLIC_URL.rstrip('/')}{parts.path}{query}"
