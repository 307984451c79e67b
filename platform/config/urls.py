"""Every route of Hearth. Each app brings its own list; this one only places them."""

from __future__ import annotations

from django.contrib import admin
from django.urls import include, path

from config.health import healthz, readyz

urlpatterns = [
    path("healthz", healthz, name="healthz"),
    path("readyz", readyz, name="readyz"),
    path("", include("accounts.urls")),
    path("", include("notifications.urls")),
    path("", include("tenants.urls")),
    path("", include("provisioning.urls")),
    path("", include("backups.urls")),
    path("admin/", admin.site.urls),
]

handler429 = "accounts.errors.too_many"
handler400 = "config.errors.bad_request"
handler403 = "config.errors.not_allowed"
handler404 = "config.errors.not_found"
handler500 = "config.errors.broken"
