"""`DATABASE_URL` as Django and psycopg want it, with everything pinned that decides whom we speak to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import environ
from django.core.exceptions import ImproperlyConfigured

from config.connections.certificates import Files
from config.connections.hosts import is_local

PREFIX = "HEARTH_DATABASE"
FIELDS = {"host": "HOST", "port": "PORT", "user": "USER", "password": "PASSWORD", "dbname": "NAME"}
"""What an address may say before or after its question mark: libpq's name and Django's."""
OPTIONS = frozenset({
    "application_name", "channel_binding", "connect_timeout", "hostaddr", "keepalives", "keepalives_count",
    "keepalives_idle", "keepalives_interval", "load_balance_hosts", "options", "require_auth", "sslmode",
    "target_session_attrs", "tcp_user_timeout",
})  # fmt: skip
"""Every other option of libpq could lead elsewhere (`service`) or leave a trace (`sslkeylogfile`), or is a setting."""


@dataclass(frozen=True)
class Database:
    """Where the database is (Django's names) and libpq's further options."""

    fields: dict[str, Any] = field(repr=False)
    options: dict[str, Any] = field(repr=False)

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Database:
        """Return what `DATABASE_URL` and `HEARTH_DATABASE_*` say, or raise `ImproperlyConfigured`.

        An empty address stands for the embedded database.
        """
        files = Files.of(settings, PREFIX)
        url = settings["DATABASE_URL"]
        fields = environ.Env.db_url_config(url or "postgres:///hearth")
        # The library makes numbers of what looks like one; a password is not a number.
        texts = dict(parse_qsl(urlsplit(url).query))
        given = {name: texts[name] for name in fields.pop("OPTIONS", {}) if name in texts}
        _join(fields, given)
        _refuse_unknown(given)
        remote = [host for host in _hosts(fields, given) if not is_local(host)]
        options = {"connect_timeout": 5} | given | _pinned(fields, given)
        if remote or files.ca or given.get("sslmode", "").startswith("verify"):
            options |= _verified(fields, given, files, remote)
        elif files.certificate:
            raise ImproperlyConfigured(
                f"{PREFIX}_CERTIFICATE is set and {PREFIX}_CA is not, so nothing says whom to show it to. "
                "Nothing was started."
            )
        return cls(fields, options)

    def django(self) -> dict[str, Any]:
        """Return the entry for Django's `DATABASES`."""
        return {**self.fields, "OPTIONS": self.options, "CONN_HEALTH_CHECKS": True}

    def psycopg(self) -> dict[str, Any]:
        """Return the keyword arguments of `psycopg.connect`."""
        return self.options | {name: self.fields[field] for name, field in FIELDS.items() if self.fields[field]}


def _join(fields: dict[str, Any], given: dict[str, str]) -> None:
    """Move what the query says about a field into the field: Django and psycopg would each prefer another."""
    for name, key in FIELDS.items():
        if name not in given:
            continue
        if fields[key]:
            raise ImproperlyConfigured(
                f"DATABASE_URL says {name} twice, in the address and after the question mark. Nothing was started. "
                "Keep one of them."
            )
        fields[key] = given.pop(name)
    if not fields["NAME"]:
        raise ImproperlyConfigured(
            "DATABASE_URL names no database. Nothing was started. It looks like postgres://user:password@host:5432/name"
        )


def _refuse_unknown(given: Mapping[str, str]) -> None:
    for name in sorted(given):
        if name in {"sslrootcert", "sslcert", "sslkey"}:
            setting = {"sslrootcert": "CA", "sslcert": "CERTIFICATE", "sslkey": "KEY"}[name]
            raise ImproperlyConfigured(
                f"DATABASE_URL has the option {name}. Nothing was started. Take it out and set {PREFIX}_{setting} to "
                "that file: one place says whom Hearth trusts."
            )
        if name not in OPTIONS:
            raise ImproperlyConfigured(
                f"DATABASE_URL has the option {name}, which Hearth does not take. Nothing was started. "
                f"It takes: {', '.join(sorted(OPTIONS))}."
            )


def _hosts(fields: Mapping[str, Any], given: Mapping[str, str]) -> list[str]:
    return [*fields["HOST"].split(","), *given.get("hostaddr", "").split(",")]


def _pinned(fields: Mapping[str, Any], given: Mapping[str, str]) -> dict[str, Any]:
    """Say even what is empty: libpq fills in what is missing from PGHOST, PGHOSTADDR and its service files."""
    pinned = {"hostaddr": given.get("hostaddr", ""), "gssencmode": "disable"}
    if not fields["HOST"]:
        pinned["host"] = ""
    if not fields["PORT"]:
        pinned["port"] = "5432"
    return pinned


def _verified(fields: Mapping[str, Any], given: Mapping[str, str], files: Files, remote: list[str]) -> dict[str, Any]:
    """Return libpq's options for verified TLS, or raise where the address asks for less."""
    where = f"goes to {remote[0]}, another host" if remote else "is to be verified"
    if (mode := given.get("sslmode", "verify-full")) != "verify-full":
        raise ImproperlyConfigured(
            f"DATABASE_URL {where}, and says sslmode={mode}: somebody on the way could read and change everything. "
            "Nothing was started. Write sslmode=verify-full, or leave it out."
        )
    if not files.ca:
        raise ImproperlyConfigured(
            f"DATABASE_URL {where}, and {PREFIX}_CA does not say who may vouch for it. Nothing was started. Set it to "
            "the authority's certificate (for a public one: /etc/ssl/certs/ca-certificates.crt)."
        )
    if all(not host or host.startswith(("/", "@")) for host in fields["HOST"].split(",")):
        raise ImproperlyConfigured(
            f"{PREFIX}_CA is set, and the database is reached by a Unix socket, which has no TLS. Nothing was started. "
            f"Take {PREFIX}_CA away, or set DATABASE_URL to the host's name."
        )
    client = {"sslcert": files.certificate, "sslkey": files.key, "sslcertmode": "allow"}
    # Without ours none is sent: libpq would look for one in the home folder.
    nobody = {"sslcertmode": "disable"}
    return {
        "sslmode": "verify-full",
        "sslrootcert": files.ca,
        "ssl_min_protocol_version": "TLSv1.3",
        **(client if files.certificate else nobody),
    }
