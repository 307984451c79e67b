"""`REDIS_URL` in one form that every client of it reads alike, and the options of its TLS."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlsplit

from django.core.exceptions import ImproperlyConfigured

from config.connections.certificates import Files
from config.connections.hosts import is_local

PREFIX = "HEARTH_REDIS"
REQUIRED = {"required", "CERT_REQUIRED"}


@dataclass(frozen=True)
class Redis:
    """The address, written anew without options; `tls` is what redis-py and kombu take, {} without TLS."""

    url: str = field(repr=False)
    tls: dict[str, Any]

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Redis:
        """Return what `REDIS_URL` and `HEARTH_REDIS_*` say, or raise `ImproperlyConfigured`.

        An empty address stands for the embedded Redis.
        """
        files = Files.of(settings, PREFIX)
        parts = urlsplit(settings["REDIS_URL"] or "unix:///embedded")
        given = dict(parse_qsl(parts.query))
        _refuse_options(parts, given)
        host = unquote(parts.hostname or "localhost")
        secure = parts.scheme == "rediss"
        if not secure and (files.ca or files.certificate):
            raise ImproperlyConfigured(
                f"{PREFIX}_CA or {PREFIX}_CERTIFICATE is set, and the way to Redis has no TLS. Nothing was started. "
                "Write REDIS_URL as rediss://, or take the setting away."
            )
        if parts.scheme == "redis" and not is_local(host):
            raise ImproperlyConfigured(
                f"REDIS_URL goes to {host}, another host, without TLS: somebody on the way could read and change "
                f"everything. Nothing was started. Write rediss:// and set {PREFIX}_CA."
            )
        if secure and not files.ca:
            raise ImproperlyConfigured(
                f"REDIS_URL asks for TLS, and {PREFIX}_CA does not say who may vouch for {host}. Nothing was started. "
                "Set it to the authority's certificate (for a public one: /etc/ssl/certs/ca-certificates.crt)."
            )
        return cls(_written(parts, given, host), _options(files) if secure else {})

    def client(self) -> dict[str, Any]:
        """Return keyword arguments for `redis.Redis.from_url(self.url, ...)` and Django's cache."""
        # Redis' client costs beat and the supervisor nothing where no TLS is asked for.
        name = "config.connections.verified"
        return self.tls and self.tls | {"connection_class": importlib.import_module(name).Connection}

    def celery(self) -> dict[str, Any]:
        """Return Celery's settings that go with the broker's address, in lower case."""
        return self.tls and {"broker_use_ssl": self.tls, "broker_transport": "config.connections.verified:Transport"}


def _refuse_options(parts: SplitResult, given: dict[str, str]) -> None:
    """A client would take a host, or the end of all checks, from what stands behind the question mark."""
    if parts.scheme == "rediss" and given.get("ssl_cert_reqs") in REQUIRED:
        del given["ssl_cert_reqs"]
    for name in sorted(given):
        if name not in {"db", "username", "password"}:
            raise ImproperlyConfigured(
                f"REDIS_URL has the option {name}, which Hearth does not take. Nothing was started. Its certificates "
                f"are settings ({PREFIX}_CA, {PREFIX}_CERTIFICATE, {PREFIX}_KEY), and they are always verified."
            )


def _written(parts: SplitResult, given: Mapping[str, str], host: str) -> str:
    user = given.get("username") or unquote(parts.username or "")
    password = given.get("password") or unquote(parts.password or "")
    sign_in = f"{quote(user, safe='')}:{quote(password, safe='')}@" if user or password else ""
    unix = parts.scheme == "unix"
    number = given.get("db") or ("" if unix else parts.path.strip("/")) or "0"
    if not number.isascii() or not number.isdigit():
        raise ImproperlyConfigured(
            "REDIS_URL must end with the number of a database, such as redis://host:6379/0. Nothing was started."
        )
    if unix:
        return f"unix://{sign_in}{quote(unquote(parts.path), safe='/')}?db={number}"
    if not set(host).isdisjoint(",;/@ "):
        raise ImproperlyConfigured("REDIS_URL must name one host. Nothing was started.")
    return f"{parts.scheme}://{sign_in}{f'[{host}]' if ':' in host else host}:{parts.port or 6379}/{number}"


def _options(files: Files) -> dict[str, Any]:
    client = {"ssl_certfile": files.certificate, "ssl_keyfile": files.key} if files.certificate else {}
    return {"ssl_cert_reqs": "required", "ssl_check_hostname": True, "ssl_ca_certs": files.ca, **client}
