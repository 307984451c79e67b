"""Logs on standard error: one line each, with the request id, as text or JSON."""

from __future__ import annotations

import logging
import logging.config
import re
from typing import Any

import structlog

from observability.context import current


def add_request(_logger: Any, _method: str, event: dict[str, Any]) -> dict[str, Any]:
    """Put the request's id on the line, so that one request's lines can be found together."""
    if request_id := current.get().request_id:
        event["request_id"] = request_id
    return event


QUIET = ("httpx", "httpcore", "django.server")
# Links that let somebody in: a page that refuses one is logged with its path.
LINKS = re.compile(r"(/(?:staff/claim|confirm-email|password/reset/key)/|[?&]token=)[^/\s&\"]+")


def redact(_logger: Any, _method: str, event: dict[str, Any]) -> dict[str, Any]:
    """Take one-time links out of the line, wherever they stand in it."""
    return {key: LINKS.sub(r"\1…", value) if isinstance(value, str) else value for key, value in event.items()}


SHARED: list[Any] = [
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_log_level,
    structlog.stdlib.add_logger_name,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
    add_request,
    redact,
]


def logging_config(form: str) -> dict[str, Any]:
    """Return the `logging.config.dictConfig` dictionary for `form`, "text" or "json"; also sets structlog up."""
    plain = structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback)
    # JSON has no traceback of its own; what an error says may name a link, too.
    as_json: list[Any] = [structlog.processors.format_exc_info, redact, structlog.processors.JSONRenderer()]
    renderers = as_json if form == "json" else [plain]
    structlog.configure(
        processors=[*SHARED, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    config = {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {
            "line": {
                "()": structlog.stdlib.ProcessorFormatter,
                "foreign_pre_chain": SHARED,
                "processors": [structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderers],
            }
        },
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
        "root": {"handlers": ["stderr"], "level": "INFO"},
        "loggers": {name: {"level": "WARNING"} for name in QUIET},
    }
    logging.config.dictConfig(config)
    return config
