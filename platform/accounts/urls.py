"""Routes of sign-up, sign-in and the person's own settings."""

from __future__ import annotations

from django.urls import include, path

from accounts import views

urlpatterns = [
    path("account/second-factor/", views.second_factor_start, name="second_factor_start"),
    path("account/", include("allauth.urls")),
]
