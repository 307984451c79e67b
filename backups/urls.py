"""Routes of the pages on backups."""

from __future__ import annotations

from django.urls import path

from backups import views

SERVER = "o/<slug:slug>/servers/<uuid:server_id>/backups/"

urlpatterns = [
    path(SERVER, views.server_backups, name="server_backups"),
    path(f"{SERVER}now/", views.back_up_now, name="back_up_now"),
]
