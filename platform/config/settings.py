"""Django's settings, made from `config.env`. Everything a deployment may change is listed there."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from csp.constants import NONCE, NONE, SELF
from django.core.exceptions import ImproperlyConfigured

from config.connections.database import Database
from config.connections.redisurl import Redis
from config.env import ROOT, read
from config.schedule import TRANSPORT_OPTIONS, broker_url
from observability.logs import logging_config

HEARTH: dict[str, Any] = read()
STATE = Path(HEARTH["HEARTH_STATE"]).expanduser().resolve()
HEARTH["HEARTH_KEY_FILE"] = HEARTH["HEARTH_KEY_FILE"] or str(STATE / "keys" / "root.key")
HEARTH["HEARTH_ENVIRONMENTS"] = HEARTH["HEARTH_ENVIRONMENTS"] or str(STATE / "environments")
PUBLIC_URL: str = HEARTH["HEARTH_PUBLIC_URL"] or f"http://localhost:{HEARTH['HEARTH_PORT']}"
INSTALLATION: str = HEARTH["HEARTH_INSTALLATION"] or urlsplit(PUBLIC_URL).netloc

DEBUG: bool = HEARTH["HEARTH_DEBUG"]
SECRET_KEY: str = HEARTH["HEARTH_SECRET_KEY"]
if not SECRET_KEY:
    raise ImproperlyConfigured(
        "HEARTH_SECRET_KEY is not set. `make run` makes one by itself; elsewhere set it (or HEARTH_SECRET_KEY_FILE) "
        "to 50 random characters and keep it: sessions and mail links are signed with it."
    )
for _name in ("DATABASE_URL", "REDIS_URL"):
    if not HEARTH[_name]:
        raise ImproperlyConfigured(
            f"{_name} is not set. `make run` starts its own; elsewhere set it to your server's address."
        )

ALLOWED_HOSTS = [
    "localhost",
    "127.0.0.1",
    "[::1]",
    urlsplit(PUBLIC_URL).hostname or "localhost",
    *HEARTH["HEARTH_ALLOWED_HOSTS"],
]
CSRF_TRUSTED_ORIGINS = [PUBLIC_URL]
SECURE = PUBLIC_URL.startswith("https://")
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = SECURE
SESSION_COOKIE_NAME, CSRF_COOKIE_NAME = (
    ("__Host-session", "__Host-csrf") if SECURE else ("hearth-session", "hearth-csrf")
)
SESSION_COOKIE_HTTPONLY = CSRF_COOKIE_HTTPONLY = True
SECURE_HSTS_SECONDS = 31_536_000 if SECURE else 0
SECURE_HSTS_INCLUDE_SUBDOMAINS = SECURE_HSTS_PRELOAD = SECURE
SECURE_SSL_REDIRECT = SECURE
# Probes ask on this machine, without the proxy and its TLS, and so does the inbox page, which exists only here.
SECURE_REDIRECT_EXEMPT = [r"^healthz$", r"^readyz$", r"^inbox/", r"^static/"]
SECURE_REFERRER_POLICY = "same-origin"
X_FRAME_OPTIONS = "DENY"
if SECURE:
    SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")

INSTALLED_APPS = [
    "unfold.apps.BasicAppConfig",
    "config.admin_app.HearthAdminConfig",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "django.contrib.humanize",
    "allauth",
    "allauth.account",
    "allauth.mfa",
    "django_htmx",
    "django_otp",
    "csp",
    "observability",
    "audit",
    "notifications",
    "security",
    "security.transport",
    "accounts",
    "tenants",
    "provisioning",
    "backups",
    "config",
]

MIDDLEWARE = [
    "observability.middleware.RequestContextMiddleware",
    "django.middleware.security.SecurityMiddleware",
    "csp.middleware.CSPMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "observability.middleware.NeverStoredMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django_otp.middleware.OTPMiddleware",
    "accounts.middleware.SecondFactorMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "allauth.account.middleware.AccountMiddleware",
    "django_htmx.middleware.HtmxMiddleware",
]

ROOT_URLCONF = "config.urls"
ASGI_APPLICATION = "config.asgi.application"
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [ROOT / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
                "tenants.context_processors.organisations",
            ],
        },
    }
]

DATABASES = {"default": Database.of(HEARTH).django()}
_redis = Redis.of(HEARTH)
REDIS_URL = _redis.url
REDIS_OPTIONS = _redis.client()
"""For `redis.Redis.from_url(settings.REDIS_URL, **settings.REDIS_OPTIONS)`, the one way to reach it."""
CACHES = {
    "default": {
        "BACKEND": "django.core.cache.backends.redis.RedisCache",
        "LOCATION": REDIS_URL,
        "KEY_PREFIX": "hearth",
        # A Redis that hangs must cost a page seconds, not a minute.
        "OPTIONS": {"socket_timeout": 2, "socket_connect_timeout": 2, **REDIS_OPTIONS},
    }
}

CELERY_BROKER_URL = broker_url(REDIS_URL)
CELERY_BROKER_USE_SSL = _redis.celery().get("broker_use_ssl")
CELERY_BROKER_TRANSPORT = _redis.celery().get("broker_transport")
CELERY_BROKER_TRANSPORT_OPTIONS = TRANSPORT_OPTIONS
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
CELERY_BROKER_CONNECTION_MAX_RETRIES = None
CELERY_BROKER_POOL_LIMIT = 4
CELERY_TASK_IGNORE_RESULT = True
CELERY_TASK_ACKS_LATE = True
# A page must not wait long for a broker that is away: the sweep finds the same work.
CELERY_TASK_PUBLISH_RETRY_POLICY = {"max_retries": 1, "interval_start": 0.1, "interval_step": 0, "interval_max": 0.1}
CELERY_WORKER_PREFETCH_MULTIPLIER = 1
CELERY_WORKER_HIJACK_ROOT_LOGGER = False
CELERY_WORKER_REDIRECT_STDOUTS = False
CELERY_WORKER_ENABLE_REMOTE_CONTROL = False
CELERY_WORKER_CANCEL_LONG_RUNNING_TASKS_ON_CONNECTION_LOSS = False

DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
LANGUAGE_CODE = "en-gb"
TIME_ZONE = "UTC"
USE_TZ = True
USE_I18N = True

STATIC_URL = "/static/"
STATICFILES_DIRS = [ROOT / "static"]
STATIC_ROOT = STATE / "static"
STORAGES = {
    "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
    "staticfiles": {"BACKEND": "whitenoise.storage.CompressedManifestStaticFilesStorage"},
}
if DEBUG or "pytest" in sys.modules:
    STORAGES["staticfiles"] = {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"}
    WHITENOISE_USE_FINDERS = True

CONTENT_SECURITY_POLICY = {
    "DIRECTIVES": {
        "default-src": [SELF],
        "script-src": [SELF, NONCE],
        "style-src": [SELF, NONCE],
        "img-src": [SELF, "data:"],
        "object-src": [NONE],
        "base-uri": [NONE],
        "form-action": [SELF],
        "frame-ancestors": [NONE],
    }
}

LOGGING_CONFIG = None
LOGGING = logging_config(HEARTH["HEARTH_LOG_FORMAT"])

from config.settings_identity import *  # noqa: E402, F403 (one file for people and sign-in, read into this namespace)
from config.settings_identity import smtp  # noqa: E402

SMTP = smtp(HEARTH["HEARTH_SMTP_URL"])
DEFAULT_FROM_EMAIL = SERVER_EMAIL = HEARTH["HEARTH_MAIL_FROM"]
INBOX_TOKEN_FILE = STATE / "secrets" / "inbox-token"
# Browsers take http://localhost for a safe place for passkeys; everywhere else they, and we, demand HTTPS.
MFA_WEBAUTHN_ALLOW_INSECURE_ORIGIN = not SECURE
