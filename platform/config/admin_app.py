"""Makes Hearth's console the admin site that every app's `admin.py` registers with."""

from __future__ import annotations

from django.contrib.admin.apps import AdminConfig


class HearthAdminConfig(AdminConfig):
    """`django.contrib.admin.site` is `HearthAdminSite`; apps import nothing of ours to register with it."""

    default_site = "config.admin_site.HearthAdminSite"
