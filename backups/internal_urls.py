"""The engine's address on the internal listener."""

from django.urls import path

from backups import internal_views

urlpatterns = [path("v1/backups/sync", internal_views.report, name="internal-backups-sync")]
