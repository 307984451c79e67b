"""Lines of the log: one JSON object each, the reason of a fault with them, and never a one-time link."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from observability.logs import logging_config


@pytest.fixture
def formatter() -> Iterator[logging.Formatter]:
    """The formatter of HEARTH_LOG_FORMAT=json, without the handlers of the test run being replaced."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logging.config, "dictConfig", lambda _: None)
        config = dict(logging_config("json")["formatters"]["line"])
        config.pop("()")
        yield structlog.stdlib.ProcessorFormatter(**config)
        logging_config("text")


def line(formatter: logging.Formatter, message: str, *args: Any, error: BaseException | None = None) -> dict[str, Any]:
    info = (type(error), error, error.__traceback__) if error else None
    record = logging.LogRecord("django.request", logging.ERROR, __file__, 1, message, args, info)
    found: dict[str, Any] = json.loads(formatter.format(record))
    return found


def test_a_fault_has_its_traceback_on_the_same_line(formatter: logging.Formatter) -> None:
    try:
        raise RuntimeError("/staff/claim/one-time-token/ broke")
    except RuntimeError as error:
        found = line(formatter, "Internal Server Error: %s", "/account/confirm-email/another-token/", error=error)
    assert found["event"] == "Internal Server Error: /account/confirm-email/…/"
    assert "test_a_fault_has_its_traceback" in found["exception"]
    assert "RuntimeError: /staff/claim/…/ broke" in found["exception"]
    assert "token/" not in json.dumps(found)


@pytest.mark.parametrize(
    "path", ["/inbox/?token=abc", "/account/password/reset/key/1-abc/", "/staff/claim/abc/", "/a/?x=1&token=abc"]
)
def test_links_that_let_somebody_in_are_not_written(formatter: logging.Formatter, path: str) -> None:
    found = line(formatter, "Not Found: %s", path)
    assert "abc" not in json.dumps(found)
    assert "…" in found["event"]
