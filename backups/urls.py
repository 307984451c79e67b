"""Routes of the pages on backups."""

from __future__ import annotations

from django.urls import path

from backups import views
from backups.exporting import views as exporting
from backups.proofs import views as proving
from backups.restoring import views as restoring

SERVER = "o/<slug:slug>/servers/<uuid:server_id>/backups/"
EXPORT = f"{SERVER}exports/<uuid:export_id>/"
COPY = f"{SERVER}copies/<uuid:restore_id>/"

urlpatterns = [
    path(SERVER, views.server_backups, name="server_backups"),
    path(f"{SERVER}now/", views.back_up_now, name="back_up_now"),
    path(f"{SERVER}proofs/", proving.server_proofs, name="server_proofs"),
    path(f"{SERVER}proofs/now/", proving.prove_now, name="prove_now"),
    path(f"{SERVER}proofs/<uuid:proof_id>/", proving.server_proof, name="server_proof"),
    path(f"{SERVER}restore/", restoring.restore, name="server_restore"),
    path(f"{SERVER}exports/", exporting.server_exports, name="server_exports"),
    path(f"{EXPORT}download/", exporting.download_export, name="download_export"),
    path(f"{EXPORT}remove/", exporting.remove_export, name="remove_export"),
    path(f"{COPY}switch/", restoring.switch_to_copy, name="switch_to_copy"),
    path(f"{COPY}back/", restoring.go_back, name="restore_go_back"),
    path(f"{COPY}remove/", restoring.drop_copy, name="drop_copy"),
]
