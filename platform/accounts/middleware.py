"""Bridge from allauth's second factor to django-otp's `is_verified`: one password and one code for everything."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from django.http import HttpRequest, HttpResponse
from django.utils.functional import SimpleLazyObject

from accounts.factors import has_factor, session_is_verified
from accounts.models import User


class SessionFactor:
    """Stands where django-otp keeps its device: this session was opened with a second factor that allauth checked."""

    persistent_id = "allauth"


class SecondFactorMiddleware:
    """Placed after `OTPMiddleware`, whose user it wraps: `request.user.is_verified()` speaks of allauth's factors."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        request.user = SimpleLazyObject(partial(verified_user, request, request.user))  # type: ignore[assignment]
        return self.get_response(request)


def verified_user(request: HttpRequest, user: Any) -> Any:
    """Return the request's user, marked as verified when the session is. Only staff is asked for: one query less."""
    if user.is_authenticated and user.is_staff and is_verified(request, user):
        user.otp_device = SessionFactor()
    return user


def is_verified(request: HttpRequest, user: User) -> bool:
    """Tell whether the session proved a second factor and the person still has one."""
    return session_is_verified(request, user) and has_factor(user)
