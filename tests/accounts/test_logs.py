"""One-time links do not stand in the logs, also when a page refuses them."""

from __future__ import annotations

import pytest

from observability.logs import redact


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("Gone: /staff/claim/abc-DEF_1/", "Gone: /staff/claim/…/"),
        ("Gone: /account/confirm-email/MQ:1xVT:leP5/", "Gone: /account/confirm-email/…/"),
        ("Not Found: /account/password/reset/key/1-abc/", "Not Found: /account/password/reset/key/…/"),
        ('"GET /inbox/?token=hush HTTP/1.1"', '"GET /inbox/?token=… HTTP/1.1"'),
        ("Not Found: /account/", "Not Found: /account/"),
    ],
)
def test_redaction(line: str, expected: str) -> None:
    assert redact(None, "", {"event": line})["event"] == expected
