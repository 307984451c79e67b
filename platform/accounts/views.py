"""The pages around signing in that allauth does not have, and the few of its own that need more here."""

from __future__ import annotations

from typing import Any, cast

from allauth.account import views as allauth_views
from allauth.account.internal.flows.login import perform_password_login
from allauth.account.models import EmailAddress, Login
from allauth.mfa.models import Authenticator
from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.db import IntegrityError, transaction
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.views.decorators.cache import never_cache
from django.views.decorators.debug import sensitive_post_parameters
from django.views.decorators.http import require_GET, require_http_methods

from accounts import limits, services
from accounts.errors import too_many
from accounts.factors import AFTER_FACTOR, has_factor
from accounts.forms import ProfileForm, ResendForm, SignupForm, StaffClaimForm
from accounts.models import User
from observability.middleware import client_address


class SignupView(allauth_views.SignupView):
    """Sign up. The account, its address, the mail and the event are written together or not at all."""

    def form_valid(self, form: SignupForm) -> HttpResponse:
        address = client_address(self.request) or "unknown"
        wait = max(
            limits.consume(limits.SIGN_UP_ADDRESS, limits.single_of(address)),
            limits.consume(limits.SIGN_UP_NETWORK, limits.network_of(address)),
        )
        if wait:
            return too_many(self.request, wait)
        try:
            with transaction.atomic():
                return cast("HttpResponse", super().form_valid(form))
        except IntegrityError:
            # Two sent the same address at once. The second one hears what anybody with a known address hears.
            form.account_already_exists = True
            return cast("HttpResponse", super().form_valid(form))


class ConfirmEmailView(allauth_views.ConfirmEmailView):
    """Open a verification link. A link that was spent meanwhile gets the page that says so, not a bare 404."""

    def get(self, *args: Any, **kwargs: Any) -> HttpResponse:
        response: HttpResponse = super().get(*args, **kwargs)
        if self.object is None:
            response.status_code = 410
        return response

    def post(self, *args: Any, **kwargs: Any) -> HttpResponse:
        try:
            with transaction.atomic():
                return cast("HttpResponse", super().post(*args, **kwargs))
        except Http404:
            self.object = None
            return cast("HttpResponse", self.render_to_response(self.get_context_data(), status=410))
        except IntegrityError:
            # Somebody signed up with the address while its link for a change was on its way.
            context = {**self.get_context_data(), "can_confirm": False}
            return cast("HttpResponse", self.render_to_response(context, status=409))


@never_cache
@require_http_methods(["GET", "HEAD", "POST"])
def resend_verification(request: HttpRequest) -> HttpResponse:
    """Send a fresh verification link. The answer is the same whether or not an account waits for one."""
    form = ResendForm(request.POST or None)
    if request.method != "POST" or not form.is_valid():
        return render(request, "accounts/resend.html", {"form": form})
    email = form.cleaned_data["email"].lower()
    wait = max(
        limits.consume(limits.RESEND_CLIENT, limits.single_of(client_address(request) or "unknown")),
        limits.consume(limits.RESEND_MAILBOX, email),
    )
    if wait:
        return too_many(request, wait)
    with transaction.atomic():
        waiting = EmailAddress.objects.filter(email=email, verified=False).select_related("user").first()
        if waiting is not None:
            waiting.send_confirmation(request, signup=waiting.primary)
    return redirect("account_email_verification_sent")


@require_GET
@login_required
def second_factor_start(request: HttpRequest) -> HttpResponse:
    """The step after verification: choose an authenticator app or a passkey."""
    if has_factor(cast("User", request.user)):
        return redirect("second_factor_done")
    return render(request, "accounts/second_factor_start.html")


@require_GET
@login_required
def second_factor_done(request: HttpRequest) -> HttpResponse:
    """Where the page with the recovery codes goes on to: back to what asked for the factor, else to the start."""
    return redirect(request.session.pop(AFTER_FACTOR, None) or reverse("home"))


@never_cache
@login_required
@require_http_methods(["GET", "HEAD", "POST"])
def account_settings(request: HttpRequest) -> HttpResponse:
    """Name, address, password and second factors on one page."""
    user = cast("User", request.user)
    form = ProfileForm(request.POST or None, initial={"name": user.name})
    if request.method == "POST" and form.is_valid():
        services.rename(user, form.cleaned_data["name"])
        messages.success(request, "Your name is saved.")
        return redirect("account_settings")
    factors = list(Authenticator.objects.filter(user_id=user.pk).order_by("created_at"))
    context = {
        "form": form,
        "app": next((factor for factor in factors if factor.type == Authenticator.Type.TOTP), None),
        "passkeys": [factor.wrap() for factor in factors if factor.type == Authenticator.Type.WEBAUTHN],
        "codes": next((factor.wrap() for factor in factors if factor.type == Authenticator.Type.RECOVERY_CODES), None),
        "pending": EmailAddress.objects.filter(user=user, verified=False).first(),
    }
    return render(request, "accounts/settings.html", context)


@never_cache
@sensitive_post_parameters("password")
@require_http_methods(["GET", "HEAD", "POST"])
def staff_claim(request: HttpRequest, token: str) -> HttpResponse:
    """Make the first staff account from the one-time link that the start printed, sign in, and go on to TOTP."""
    if wait := limits.consume(limits.CLAIM_CLIENT, limits.single_of(client_address(request) or "unknown")):
        return too_many(request, wait)
    if not services.staff_link_works(token):
        return render(request, "accounts/staff_claim_spent.html", status=410)
    form = StaffClaimForm(request.POST or None)
    if request.method == "POST" and form.is_valid():
        email, password = form.cleaned_data["email"], form.cleaned_data["password"]
        try:
            user = services.claim_staff_link(token, email, password)
        except services.LinkSpent:
            return render(request, "accounts/staff_claim_spent.html", status=410)
        except services.Refused as refusal:
            form.add_error(refusal.field, refusal.message)
        else:
            return _enter(request, user, password)
    return render(request, "accounts/staff_claim.html", {"form": form})


def _enter(request: HttpRequest, user: User, password: str) -> HttpResponse:
    request.session.flush()  # whoever was signed in here before is not the new person
    request.session[AFTER_FACTOR] = reverse("admin:index")
    login = Login(user=user, email=user.email, redirect_url=reverse("mfa_activate_totp"))
    return cast("HttpResponse", perform_password_login(request, {"email": user.email, "password": password}, login))
