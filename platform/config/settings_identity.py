"""Settings of sign-up, sign-in, second factors and mail: django-allauth, django-otp, the staff console."""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote, urlsplit

from django.core.exceptions import ImproperlyConfigured
from django.urls import reverse_lazy


def smtp(url: str) -> dict[str, Any] | None:
    """Return the keyword arguments of Django's SMTP backend for `smtp[+tls|+ssl]://user:password@host:port`."""
    if not url:
        return None
    ports = {"smtp": 25, "smtp+tls": 587, "smtp+ssl": 465, "smtps": 465}
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    if parts.scheme not in ports or not parts.hostname:
        raise ImproperlyConfigured(
            "HEARTH_SMTP_URL must look like smtp+tls://user:password@host:587 (or smtp://, smtp+ssl://). "
            "Its present value does not; no mail could be sent."
        )
    return {
        "host": parts.hostname,
        "port": port or ports[parts.scheme],
        "username": unquote(parts.username or ""),
        "password": unquote(parts.password or ""),
        "use_tls": parts.scheme == "smtp+tls",
        "use_ssl": parts.scheme in {"smtp+ssl", "smtps"},
    }


AUTH_USER_MODEL = "accounts.User"
# allauth's backend has Django's permission checks too. With both, a wrong password would be hashed twice.
AUTHENTICATION_BACKENDS = ["allauth.account.auth_backends.AuthenticationBackend"]
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": "django.contrib.auth.password_validation.UserAttributeSimilarityValidator"},
    {"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator", "OPTIONS": {"min_length": 10}},
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
]
PASSWORD_RESET_TIMEOUT = 3600 * 24
SESSION_ENGINE = "accounts.sessions"
EMAIL_BACKEND = "notifications.backends.QueueBackend"
EMAIL_TIMEOUT = 20

FORMAT_MODULE_PATH = ["config.formats"]
LOGIN_URL = "account_login"
LOGIN_REDIRECT_URL = "home"
LOGOUT_REDIRECT_URL = "account_login"
ACCOUNT_ADAPTER = "accounts.adapters.AccountAdapter"
ACCOUNT_LOGIN_METHODS = {"email"}
ACCOUNT_SIGNUP_FIELDS = ["email*", "password1*"]
ACCOUNT_USER_MODEL_USERNAME_FIELD = None
ACCOUNT_PREVENT_ENUMERATION = True
ACCOUNT_EMAIL_VERIFICATION = "mandatory"
# A mail scanner that follows links must not spend them: the page has a button.
ACCOUNT_CONFIRM_EMAIL_ON_GET = False
ACCOUNT_EMAIL_CONFIRMATION_EXPIRE_DAYS = 2
ACCOUNT_EMAIL_CONFIRMATION_ANONYMOUS_REDIRECT_URL = "/account/login/"
ACCOUNT_LOGIN_ON_EMAIL_CONFIRMATION = True
ACCOUNT_LOGIN_TIMEOUT = 3600
ACCOUNT_CHANGE_EMAIL = True
ACCOUNT_EMAIL_SUBJECT_PREFIX = ""
ACCOUNT_EMAIL_NOTIFICATIONS = True
ACCOUNT_SESSION_REMEMBER = True
ACCOUNT_LOGOUT_ON_PASSWORD_CHANGE = False
ACCOUNT_REAUTHENTICATION_REQUIRED = True
ACCOUNT_REAUTHENTICATION_TIMEOUT = 900
# Sign-ups are counted by accounts.limits: by address and by network. The rest here are those that send mail to an
# address which somebody typed: nobody's mailbox can be flooded through Hearth.
ACCOUNT_RATE_LIMITS = {
    "signup": None,
    "confirm_email": "1/60s/key,6/h/key",
    "reset_password": "30/h/ip,3/10m/key",
    "manage_email": "20/h/user",
}
ACCOUNT_FORMS = {
    "signup": "accounts.forms.SignupForm",
    "login": "accounts.forms.LoginForm",
    "reset_password": "accounts.forms.ResetPasswordForm",
    "reset_password_from_key": "accounts.forms.ResetPasswordKeyForm",
    "change_password": "accounts.forms.ChangePasswordForm",
    "add_email": "accounts.forms.AddEmailForm",
    "reauthenticate": "accounts.forms.PasswordAgainForm",
}

MFA_ADAPTER = "accounts.adapters.MFAAdapter"
MFA_SUPPORTED_TYPES = ["totp", "webauthn", "recovery_codes"]
MFA_PASSKEY_LOGIN_ENABLED = True
MFA_TOTP_ISSUER = "Hearth"
# One period early or late, because clocks differ; accounts.forms.OneTimeCode refuses a second use for all of that time.
MFA_TOTP_TOLERANCE = 1
# An address is verified before anybody can sign in, so a pending change of address need not forbid second factors.
MFA_ALLOW_UNVERIFIED_EMAIL = True
MFA_FORMS = {
    "authenticate": "accounts.forms.CodeForm",
    "reauthenticate": "accounts.forms.CodeAgainForm",
    "activate_totp": "accounts.forms.ActivateTOTPForm",
    "add_webauthn": "accounts.forms.AddPasskeyForm",
    "edit_webauthn": "accounts.forms.PasskeyNameForm",
    "login_webauthn": "accounts.forms.PasskeyLoginForm",
    "authenticate_webauthn": "accounts.forms.PasskeyForm",
    "reauthenticate_webauthn": "accounts.forms.PasskeyAgainForm",
}


def _link(title: str, icon: str, model: str) -> dict[str, Any]:
    return {"title": title, "icon": icon, "link": reverse_lazy(f"admin:{model}_changelist")}


UNFOLD = {
    "SITE_TITLE": "Hearth staff",
    "SITE_HEADER": "Hearth",
    "SITE_SUBHEADER": "Staff console",
    "SITE_SYMBOL": "local_fire_department",
    "SITE_FAVICONS": [{"rel": "icon", "type": "image/svg+xml", "href": "/static/img/favicon.svg"}],
    # The accent of static/css/tokens.css, from light to dark.
    "COLORS": {
        "primary": {
            "50": "#fdf3ee",
            "100": "#fbe9df",
            "200": "#f6cfbc",
            "300": "#efac8d",
            "400": "#e58a62",
            "500": "#d76f42",
            "600": "#ad3f14",
            "700": "#8f310c",
            "800": "#742b10",
            "900": "#5f2611",
            "950": "#341006",
        }
    },
    "SHOW_HISTORY": False,
    "SHOW_VIEW_ON_SITE": False,
    "COMMAND": {"search_models": False},
    "SIDEBAR": {
        "show_search": False,
        "navigation": [
            {
                "title": "Customers",
                "separator": False,
                "items": [
                    _link("Organisations", "apartment", "tenants_organisation"),
                    _link("Members", "group", "tenants_membership"),
                    _link("Subscriptions", "receipt_long", "tenants_subscription"),
                    _link("Plans", "sell", "tenants_plan"),
                    _link("Domains", "language", "tenants_domain"),
                ],
            },
            {
                "title": "Fleet",
                "separator": True,
                "items": [
                    _link("Servers", "dns", "tenants_server"),
                    _link("Operations", "sync", "provisioning_operation"),
                    _link("Regions", "public", "provisioning_region"),
                    _link("Kubernetes regions", "hub", "provisioning_cluster"),
                ],
            },
            {
                "title": "Backups",
                "separator": True,
                "items": [
                    _link("Alarms", "notification_important", "backups_alarm"),
                    _link("Restore points", "settings_backup_restore", "backups_restorepoint"),
                    _link("Restores", "history", "backups_restore"),
                    _link("Proofs", "fact_check", "backups_proof"),
                    _link("Drills", "emergency", "backups_drill"),
                    _link("What stores hold", "inventory_2", "backups_shelf"),
                    _link("Copies", "content_copy", "backups_copy"),
                    _link("Stores", "database", "backups_store"),
                    _link("Stores of regions", "lan", "backups_regionstores"),
                    _link("Policies", "event_repeat", "backups_policy"),
                ],
            },
            {
                "title": "People and records",
                "separator": True,
                "items": [
                    _link("People", "person", "accounts_user"),
                    _link("Mails", "mail", "notifications_mail"),
                    _link("Audit trail", "history", "audit_auditevent"),
                    _link("Keys", "key", "security_keyencryptionkey"),
                    _link("Root keys", "shield_lock", "security_rootkey"),
                    _link("Erasures", "delete_forever", "security_erasure"),
                ],
            },
        ],
    },
}
