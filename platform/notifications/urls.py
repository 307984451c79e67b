"""Routes of the inbox page."""

from __future__ import annotations

from django.urls import path

from notifications import views

urlpatterns = [
    path("inbox/", views.inbox, name="inbox"),
    path("inbox/<uuid:mail_id>/", views.inbox_mail, name="inbox_mail"),
]
