"""Hearth's own processes: what each is started with, and nothing more."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from config.env import BY_NAME, ROOT
from observability import processes
from provisioning.providers.local.processes import Command

PASSED = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "SSL_CERT_FILE", "HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY",
          "https_proxy", "http_proxy", "no_proxy", "PIP_INDEX_URL", "PIP_CERT", "PIP_CONFIG_FILE",
          "UV_INDEX_URL", "UV_DEFAULT_INDEX", "UV_CACHE_DIR", "XDG_CACHE_HOME")  # fmt: skip
# Where the PKCS#11 libraries of the usual HSMs look for their own configuration.
HSM = ("SOFTHSM2_CONF", "ChrystokiConfigurationPath", "CS_PKCS11_R3_CFG", "NFAST_HOME", "YUBIHSM_PKCS11_CONF")

CONNECTIONS = {"DATABASE_URL", "REDIS_URL"} | {
    f"HEARTH_{service}_{file}" for service in ("DATABASE", "REDIS") for file in ("CA", "CERTIFICATE", "KEY")
}


COUNTING = ("web", "worker", "beat")
"""Those that count for Prometheus, by the names of their processes."""


def base_environment() -> dict[str, str]:
    """Return what every child gets: the way to our code and the machine's own settings, and no secret."""
    return {name: os.environ[name] for name in PASSED if name in os.environ} | {
        "PYTHONPATH": f"{ROOT / 'platform'}:{ROOT}",
        "PYTHONUNBUFFERED": "1",
        # Two heaps are plenty for processes whose threads mostly wait, and save tens of megabytes.
        "MALLOC_ARENA_MAX": "2",
        "MALLOC_TRIM_THRESHOLD_": "131072",
    }


def django_environment(state: Path, database_url: str, redis_url: str) -> dict[str, str]:
    """Return what the processes that load Django get: the settings of our own environment, completed."""
    settings = {
        name: value
        for name, value in os.environ.items()
        if name in BY_NAME or name.removesuffix("_FILE") in BY_NAME or name in HSM
    }
    for name in ("DATABASE_URL", "REDIS_URL"):
        settings.pop(f"{name}_FILE", None)
    if not (settings.get("HEARTH_SECRET_KEY") or settings.get("HEARTH_SECRET_KEY_FILE")):
        settings.pop("HEARTH_SECRET_KEY", None)
        settings["HEARTH_SECRET_KEY_FILE"] = str(state / "secrets" / "secret-key")
    return base_environment() | settings | {
        "DJANGO_SETTINGS_MODULE": "config.settings",
        "HEARTH_STATE": str(state),
        "DATABASE_URL": database_url,
        "REDIS_URL": redis_url,
    }  # fmt: skip


def metrics_folder(state: Path) -> Path:
    """Where processes count for Prometheus; each start begins with an empty one."""
    return state / "metrics"


def prepare(env: Mapping[str, str]) -> Command:
    """Migrations, static files, seeds, links: once at each start. Its lines are read by the supervisor."""
    return Command("prepare", (sys.executable, "manage.py", "prepare"), ROOT, env)


def agent(state: Path, environments: Path) -> Command:
    """The one writer of homeservers on this machine."""
    words = ("-m", "provisioning.providers.local.agent", "--state", str(state), "--environments", str(environments))
    # It stops every homeserver before it ends; each has its own limit below this one.
    return _python("agent", words, base_environment(), state, stop_timeout=15)


def web(settings: Mapping[str, Any], env: dict[str, str], state: Path) -> Command:
    """One uvicorn process; its threads carry the requests."""
    words: tuple[str, ...] = ("-m", "uvicorn", "config.asgi:application", "--host", settings["HEARTH_HOST"])
    words += ("--port", str(settings["HEARTH_PORT"]), "--lifespan", "on", "--no-access-log", "--log-level", "warning")
    words += ("--no-server-header", "--no-proxy-headers", "--timeout-graceful-shutdown", "3")
    words += ("--http", "security.transport.limits:LimitedProtocol")
    return _python("web", words, env | _counting("web", state), state, stop_timeout=5)


def worker(env: dict[str, str], state: Path) -> Command:
    """Four threads that carry out operations. What a kill interrupts, the next lease continues."""
    words: tuple[str, ...] = ("-m", "celery", "-A", "config", "worker", "--pool", "threads", "--concurrency", "4")
    words += ("--without-gossip", "--without-mingle", "--without-heartbeat", "--loglevel", "WARNING")
    return _python("worker", words, env | _counting("worker", state), state, stop_timeout=4)


def beat(env: Mapping[str, str], state: Path) -> Command:
    """The clock: sends the few timed messages and writes the heartbeat. It needs no Django, so it loads none."""
    kept = {name: env[name] for name in env if name.removesuffix("_FILE") in CONNECTIONS}
    env = base_environment() | kept | _counting("beat", state)
    return _python("beat", ("-m", "config.beat"), env, state, stop_timeout=3)


def _counting(name: str, state: Path) -> dict[str, str]:
    return {processes.FOLDER: str(metrics_folder(state)), processes.PROCESS: name}


def _python(name: str, words: tuple[str, ...], env: Mapping[str, str], state: Path, *, stop_timeout: float) -> Command:
    log = state / "logs" / f"{name}.log"
    return Command(name, (sys.executable, *words), ROOT, env, log, stop_timeout=stop_timeout)
