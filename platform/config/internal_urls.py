"""Every route of the internal listener, and nothing else: the public web server knows none of them."""

from __future__ import annotations

from django.urls import include, path

from config.metrics import scrape

urlpatterns = [
    path("metrics", scrape, name="internal-metrics"),
    path("", include("security.transport.urls")),
    path("", include("security.datakeys.urls")),
    path("", include("backups.internal_urls")),
]

handler400 = "security.transport.calls.bad_request"
handler403 = "security.transport.calls.not_allowed"
handler404 = "security.transport.calls.not_found"
handler500 = "security.transport.calls.broken"
