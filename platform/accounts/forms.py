"""Forms of signing up, signing in and the person's own settings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from allauth.account import forms as account
from allauth.account.models import EmailAddress
from allauth.mfa import app_settings as mfa_settings
from allauth.mfa.base import forms as mfa
from allauth.mfa.totp.forms import ActivateTOTPForm as BaseActivateTOTPForm
from allauth.mfa.webauthn import forms as webauthn
from allauth.mfa.webauthn.internal.auth import parse_authentication_response, parse_registration_response
from django import forms
from django.contrib.auth.hashers import make_password
from django.contrib.auth.password_validation import validate_password
from django.core.cache import cache
from django.core.validators import MaxLengthValidator
from django.db.models import Q, QuerySet
from django.http import HttpRequest

from accounts.models import User

LENGTH_HELP = "At least 10 characters. A few words in a row are fine."
LONGEST_ADDRESS = 254
REUSED = "This code was used already. Wait for the next one, then type it."


class SignupForm(account.SignupForm):
    """E-mail and password. Answers the same, and takes as long, for an address that has an account already."""

    account_already_exists: bool
    only_wished_for: bool

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        plain_field(self.fields["email"], "E-mail address", "We send a link there to make sure that it is yours.")
        plain_field(self.fields["password1"], "Password", LENGTH_HELP)

    def clean_email(self) -> str:
        email = str(super().clean_email())
        # An address that somebody wants to change to, and never proved, must not keep its owner from signing up.
        self.only_wished_for = self.account_already_exists and not held(email).exists()
        if self.only_wished_for:
            self.account_already_exists = False
        return email

    def try_save(self, request: HttpRequest) -> Any:
        if self.only_wished_for:
            EmailAddress.objects.filter(email=self.cleaned_data["email"], verified=False, primary=False).delete()
        if self.account_already_exists:
            make_password(self.cleaned_data["password1"])
        return super().try_save(request)


def held(email: str) -> QuerySet[User]:
    """Return the person whose address this is, proved or not; one who only wants to change to it is not meant."""
    own = EmailAddress.objects.filter(email=email).exclude(verified=False, primary=False)
    return User.objects.filter(Q(email=email) | Q(pk__in=own.values("user_id")))


class LoginForm(account.LoginForm):
    """E-mail and password, for a person who has an account."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        plain_field(self.fields["login"], "E-mail address")
        plain_field(self.fields["password"], "Password")


class ResetPasswordForm(account.ResetPasswordForm):
    """Ask for a link that sets a new password."""

    users: list[User]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        plain_field(self.fields["email"], "E-mail address")

    def clean_email(self) -> str:
        email = str(super().clean_email())
        # An address that an account only wants to change to gives no power over that account.
        self.users = [user for user in self.users if user.email.lower() == email.lower()]
        return email


class ResetPasswordKeyForm(account.ResetPasswordKeyForm):
    """Set a new password; typed once, like at sign-up."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        one_new_password(self)


class ChangePasswordForm(account.ChangePasswordForm):
    """Change the password, knowing the present one."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        plain_field(self.fields["oldpassword"], "Present password")
        one_new_password(self)


class AddEmailForm(account.AddEmailForm):
    """Change to another address; it counts once its link was opened."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        plain_field(
            self.fields["email"], "New e-mail address", "We send a link there; until you open it nothing changes."
        )


class PasswordAgainForm(account.ReauthenticateForm):
    """Confirm with the password."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        plain_field(self.fields["password"], "Password")


class OneTimeCode:
    """A code of an authenticator app works once.

    allauth remembers used codes for one period only, and a code is taken one period early or late here (clocks differ),
    so each is remembered for as long as it could work. Its first use, when the app is added, counts too.
    """

    user: User
    fields: dict[str, forms.Field]

    def prepare(self, label: str, help_text: str) -> None:
        plain_field(self.fields["code"], label, help_text)
        self.fields["code"].widget.attrs |= {"inputmode": "numeric", "autofocus": True, "maxlength": "20"}

    def clean_code(self) -> str:
        code = str(super().clean_code())  # type: ignore[misc]
        steps = 2 * mfa_settings.TOTP_TOLERANCE + 2
        digits = "".join(code.split())
        key = f"accounts.code-used:{self.user.pk}:{digits}"
        if not cache.add(key, 1, timeout=steps * mfa_settings.TOTP_PERIOD):
            raise forms.ValidationError(REUSED, code="incorrect_code")
        return code


class CodeForm(OneTimeCode, mfa.AuthenticateForm):
    """The second step of signing in."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.prepare("Code", "Six digits from your authenticator app, or one of your recovery codes.")


class CodeAgainForm(OneTimeCode, mfa.ReauthenticateForm):
    """Confirm with a code."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.prepare("Code", "Six digits from your authenticator app, or one of your recovery codes.")


class ActivateTOTPForm(OneTimeCode, BaseActivateTOTPForm):
    """Add an authenticator app by typing its first code."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.prepare("Code from the app", "Six digits; the app shows new ones every 30 seconds.")


class CredentialField(forms.JSONField):
    """What a passkey answered. What is no answer at all, in any of the ways to be none, is wrong and no fault of ours.

    `parse` is the library's reading of it; numbers and nestings that Python gives up on never get so far.
    """

    def __init__(self, parse: Callable[[Any], Any]) -> None:
        super().__init__(widget=forms.HiddenInput)
        self.parse = parse

    def to_python(self, value: Any) -> Any:
        try:
            answer = super().to_python(value)
            if answer not in self.empty_values:
                self.parse(answer)
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            raise forms.ValidationError("This is not what a passkey answers. Try again.", code="invalid") from None
        return answer

    def bound_data(self, data: Any, initial: Any) -> Any:  # noqa: ARG002 (Django's signature)
        return ""  # an answer works once; shown again, it would only be parsed again


class PasskeyLoginForm(webauthn.LoginWebAuthnForm):
    """Sign in with a passkey alone."""

    credential = CredentialField(parse_authentication_response)


class PasskeyForm(webauthn.AuthenticateWebAuthnForm):
    """The second step of signing in, with a passkey."""

    credential = CredentialField(parse_authentication_response)


class PasskeyAgainForm(webauthn.ReauthenticateWebAuthnForm):
    """Confirm with a passkey."""

    credential = CredentialField(parse_authentication_response)


class PasskeyNameForm(webauthn.EditWebAuthnForm):
    """Rename a passkey."""

    name = forms.CharField(max_length=100)


class AddPasskeyForm(webauthn.AddWebAuthnForm):
    """Add a passkey. One that can sign in by itself is the default; the browser asks for a fingerprint, face or PIN."""

    name = forms.CharField(required=False, max_length=100)
    credential = CredentialField(parse_registration_response)
    passwordless = forms.BooleanField(
        label="Sign in with this passkey alone",
        required=False,
        initial=True,
        help_text="It then stands for password and code together. Take it off for simple security keys without a PIN.",
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        plain_field(self.fields["name"], "Name", "To tell your passkeys apart, such as “laptop”.")


class ResendForm(forms.Form):
    """Ask for a fresh verification link."""

    email = forms.EmailField(
        label="E-mail address", max_length=LONGEST_ADDRESS, widget=forms.EmailInput(attrs={"autocomplete": "email"})
    )


class ProfileForm(forms.Form):
    """What other members see."""

    name = forms.CharField(
        label="Name",
        required=False,
        max_length=150,
        help_text="How other members see you.",
        widget=forms.TextInput(attrs={"autocomplete": "name"}),
    )


class StaffClaimForm(forms.Form):
    """Make the first staff account."""

    email = forms.EmailField(
        label="E-mail address", max_length=LONGEST_ADDRESS, widget=forms.EmailInput(attrs={"autocomplete": "email"})
    )
    password = forms.CharField(
        label="Password",
        strip=False,
        help_text=LENGTH_HELP,
        widget=forms.PasswordInput(attrs={"autocomplete": "new-password"}),
    )

    def clean(self) -> dict[str, Any]:
        data = super().clean() or {}
        if "email" in data and "password" in data:
            try:
                validate_password(data["password"], User(email=data["email"]))
            except forms.ValidationError as error:
                self.add_error("password", error)
        return data


def plain_field(field: forms.Field, label: str, help_text: str = "") -> None:
    """Give `field` our label and help, and no placeholder: a label says it better and stays."""
    field.label, field.help_text = label, help_text
    field.widget.attrs.pop("placeholder", None)
    if isinstance(field, forms.EmailField):
        shorten(field)


def shorten(field: forms.EmailField) -> None:
    """Allow no more characters than an address can have (RFC 5321, 4.5.3.1.3) and the database keeps."""
    field.max_length = LONGEST_ADDRESS
    field.widget.attrs["maxlength"] = str(LONGEST_ADDRESS)
    field.validators.append(MaxLengthValidator(LONGEST_ADDRESS, "This address is too long to be one."))


def one_new_password(form: Any) -> None:
    """Ask for the new password once. Whoever mistypes it has the reset link."""
    plain_field(form.fields["password1"], "New password", LENGTH_HELP)
    del form.fields["password2"]
