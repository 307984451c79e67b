"""Synapse's configuration, built from a spec. Builders do no I/O. Imports no Django.

Options: https://element-hq.github.io/synapse/latest/usage/configuration/config_documentation.html
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from provisioning.providers.base import ServerSpec

SUSPENDED = "This server is suspended. Please ask its owner."
LOG_BYTES = 10 * 1024 * 1024
DATABASE = ROLE = "synapse"


@dataclass(frozen=True)
class Places:
    """Where things of one server lie on this machine."""

    port: int
    metrics_port: int
    socket_dir: Path
    signing_key: Path
    media: Path
    log_config: Path
    log: Path

    @property
    def url(self) -> str:
        """The address of the client listener on this machine."""
        return f"http://localhost:{self.port}"

    @property
    def metrics_url(self) -> str:
        """The address that Prometheus reads."""
        return f"http://127.0.0.1:{self.metrics_port}/_synapse/metrics"


def homeserver(spec: ServerSpec, places: Places) -> dict[str, Any]:
    """Return the content of homeserver.yaml."""
    config: dict[str, Any] = {
        "server_name": spec.server_name,
        "public_baseurl": (spec.public_url or places.url).rstrip("/") + "/",
        "report_stats": False,
        "listeners": _listeners(places),
        "database": _database(spec, places),
        **_paths(places),
        "macaroon_secret_key": spec.secrets["macaroon"],
        "registration_shared_secret": spec.secrets["registration"],
        "form_secret": spec.secrets["form"],
        # No keys from a notary: each server's keys are asked of that server itself.
        "trusted_key_servers": [],
        "suppress_key_server_warning": True,
        "enable_metrics": True,
        "max_upload_size": "100M",
        "url_preview_enabled": False,
    }
    return config | _people(spec) | _federation(spec) | _pushes(spec) | _suspension(spec)


def placed(config: dict[str, Any], places: Places) -> dict[str, Any]:
    """Return a configuration that was made elsewhere, for these places; all else stays as it is."""
    database = config["database"]
    args = database["args"] | {"host": str(places.socket_dir)}
    return config | _paths(places) | {"listeners": _listeners(places), "database": database | {"args": args}}


def log_config(places: Places) -> dict[str, Any]:
    """Return the content of log.yaml: a file that rotates at 10 MB, and serious trouble on standard error too."""
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"plain": {"format": "%(asctime)s %(levelname)s %(name)s %(request)s %(message)s"}},
        "handlers": {
            "file": {
                "class": "logging.handlers.RotatingFileHandler",
                "formatter": "plain",
                "filename": str(places.log),
                "maxBytes": LOG_BYTES,
                "backupCount": 3,
                "encoding": "utf8",
            },
            "stderr": {"class": "logging.StreamHandler", "formatter": "plain", "level": "ERROR"},
        },
        # At INFO it writes two lines for each request; those tell who read what, and are nobody's business.
        "loggers": {"synapse.access": {"level": "WARNING"}},
        "root": {"level": "WARNING", "handlers": ["file", "stderr"]},
    }


def render(content: dict[str, Any]) -> str:
    """Return YAML, always the same for the same content."""
    return yaml.safe_dump(content, sort_keys=True, allow_unicode=True)


def _paths(places: Places) -> dict[str, str]:
    return {
        "signing_key_path": str(places.signing_key),
        "media_store_path": str(places.media),
        "log_config": str(places.log_config),
    }


def _listeners(places: Places) -> list[dict[str, Any]]:
    return [
        {
            "type": "http",
            "port": places.port,
            "bind_addresses": ["127.0.0.1"],
            "tls": False,
            "x_forwarded": False,
            # Without `federation` the endpoint of the server's own keys never answers.
            "resources": [{"names": ["client", "federation"], "compress": False}],
        },
        {"type": "metrics", "port": places.metrics_port, "bind_addresses": ["127.0.0.1"]},
    ]


def _database(spec: ServerSpec, places: Places) -> dict[str, Any]:
    return {
        "name": "psycopg2",
        "args": {
            "user": ROLE,
            "password": spec.secrets["database"],
            "dbname": DATABASE,
            "host": str(places.socket_dir),
            "cp_min": 2,
            "cp_max": 10,
        },
    }


def _people(spec: ServerSpec) -> dict[str, Any]:
    return {
        "enable_registration": False,
        # Counts and limits. The service account is of type `support`, which the limit never blocks.
        "limit_usage_by_mau": True,
        "max_mau_value": spec.users,
        "mau_trial_days": 0,
        "rc_login": {
            # Every client comes from loopback, so a limit for an address would be one for everybody together.
            "address": {"per_second": 50, "burst_count": 200},
            "account": {"per_second": 1, "burst_count": 30},
            # Guessing passwords stays slow: Synapse's own defaults.
            "failed_attempts": {"per_second": 0.17, "burst_count": 3},
        },
        # Hearth's service account signs in by a token (HS256) that lives a minute and costs no bcrypt. Whoever holds
        # this secret can sign in as anybody, as with the registration secret: it is kept sealed, and here.
        "jwt_config": {"enabled": True, "secret": spec.secrets["jwt"], "algorithm": "HS256"},
    }


def _federation(spec: ServerSpec) -> dict[str, Any]:
    if spec.federation:
        return {}
    # Nobody has proved that the name is theirs: it may not speak under that name to anybody.
    return {"federation_domain_whitelist": []}


def _pushes(spec: ServerSpec) -> dict[str, Any]:
    return {} if spec.pushes else {"start_pushers": False}


def _suspension(spec: ServerSpec) -> dict[str, Any]:
    if not spec.suspended:
        return {}
    return {"hs_disabled": True, "hs_disabled_message": spec.suspend_message or SUSPENDED}
