"""Routes of the pages that show how servers are. Those that change what is wanted are in `tenants.urls`."""

from __future__ import annotations

from django.urls import path

from provisioning import views

SERVER = "o/<slug:slug>/servers/<uuid:server_id>/"
OPERATION = f"{SERVER}operations/<uuid:operation_id>/"

urlpatterns = [
    path("o/<slug:slug>/", views.organisation, name="organisation"),
    path(SERVER, views.server, name="server"),
    path(f"{SERVER}live/", views.server_live, name="server_live"),
    path(f"{SERVER}reveal/", views.server_reveal, name="server_reveal"),
    path(OPERATION, views.server_log, name="server_log"),
    path(f"{OPERATION}retry/", views.operation_retry, name="operation_retry"),
    path(f"{OPERATION}cancel/", views.operation_cancel, name="operation_cancel"),
]
