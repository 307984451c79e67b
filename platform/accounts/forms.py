"""Forms of signing up, signing in and the person's own settings."""

from __future__ import annotations

from typing import Any

from allauth.account import forms as account
from allauth.account.models import EmailAddress
from allauth.mfa import app_settings as mfa_settings
from allauth.mfa.base import forms as mfa
from allauth.mfa.totp.forms import ActivateTOTPForm as BaseActivateTOTPForm
from allauth.mfa.webauthn.forms import AddWebAuthnForm as BaseAddWebAuthnForm
from django import forms
from django.contrib.auth.hashers import make_password
from django.contrib.auth.password_validation import validate_password
from django.core.cache import cache
from django.http import HttpRequest

from accounts.models import User

LENGTH_HELP = "At least 10 characters. A few words in a row are fine."
REUSED = "This code was used already. Wait for the next one, then type it."


class SignupForm(account.SignupForm):
    """E-mail and password. Answers the same, and takes as long, for an address that has an account already."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        plain_field(self.fields["email"], "E-mail address", "We send a link there to make sure that it is yours.")
        plain_field(self.fields["password1"], "Password", LENGTH_HELP)

    def clean_email(self) -> str:
        # An address that somebody wants to change to, and never proved, must not keep its owner from signing up.
        EmailAddress.objects.filter(
            email=str(self.cleaned_data["email"]).lower(), verified=False, primary=False
        ).delete()
        return str(super().clean_email())

    def try_save(self, request: HttpRequest) -> Any:
        if self.account_already_exists:
            make_password(self.cleaned_data["password1"])
        return super().try_save(request)


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


class AddPasskeyForm(BaseAddWebAuthnForm):
    """Add a passkey. One that can sign in by itself is the default; the browser asks for a fingerprint, face or PIN."""

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

    email = forms.EmailField(label="E-mail address", widget=forms.EmailInput(attrs={"autocomplete": "email"}))


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

    email = forms.EmailField(label="E-mail address", widget=forms.EmailInput(attrs={"autocomplete": "email"}))
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


def one_new_password(form: Any) -> None:
    """Ask for the new password once. Whoever mistypes it has the reset link."""
    plain_field(form.fields["password1"], "New password", LENGTH_HELP)
    del form.fields["password2"]
