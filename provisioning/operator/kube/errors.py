"""What the API server answers when it does not do what was asked."""

from __future__ import annotations

from typing import Any

import orjson

MALFORMED = "failed to create typed patch object"
"""How the API server refuses, with status 500, an apply with a value of the wrong type."""


class ApiError(Exception):
    """An answer that is not a success. `status` is the HTTP status, 0 when there was no answer at all."""

    def __init__(
        self, status: int, reason: str, message: str, *, retry_after: float = 0.0, details: Any = None
    ) -> None:
        super().__init__(f"{reason} ({status}): {message}")
        self.status = status
        self.reason = reason
        self.message = message
        self.retry_after = retry_after
        """Seconds that the API server asks to wait; 0 when it asks for nothing."""
        self.details: dict[str, Any] = details if isinstance(details, dict) else {}

    @property
    def passing(self) -> bool:
        """Whether the same request may well be answered a moment later."""
        if MALFORMED in self.message:
            return False
        # A quota that was just made allows nothing until it has been counted.
        uncounted = self.status == 403 and "status unknown for quota" in self.message
        return uncounted or self.status in {0, 401, 429, 500, 502, 503, 504}

    @property
    def expired(self) -> bool:
        """Whether a watch's resource version is unknown to the server, so that it must begin anew."""
        causes = {cause.get("reason") for cause in self.details.get("causes") or ()}
        return self.status == 410 or self.reason in {"Expired", "Gone"} or "ResourceVersionTooLarge" in causes


class NotLeaderError(Exception):
    """Another operator may have taken over, so nothing may be written."""


def unanswered(error: BaseException) -> ApiError:
    """Return the error for a request that got no answer."""
    return ApiError(0, "Unanswered", f"the API server did not answer: {type(error).__name__} {error}".strip())


def from_answer(status: int, body: bytes, retry_after: str | None = None) -> ApiError:
    """Return the error that an answer's body, mostly a `Status`, describes."""
    try:
        found = orjson.loads(body)
    except ValueError:
        found = None
    if not isinstance(found, dict) or found.get("kind") != "Status":
        text = body[:300].decode("utf-8", "replace").strip()
        found = {"message": text or "no explanation was given"}
    return from_status(found, status, retry_after)


def from_status(found: dict[str, Any], status: int = 0, retry_after: str | None = None) -> ApiError:
    """Return the error that a `Status` object describes, as a watch's ERROR event carries one."""
    details = found.get("details") or {}
    seconds = float(details.get("retryAfterSeconds") or 0)
    if retry_after and retry_after.isdigit():
        seconds = float(retry_after)
    return ApiError(
        int(found.get("code") or status),
        str(found.get("reason") or "Unknown"),
        str(found.get("message") or ""),
        retry_after=seconds,
        details=details,
    )
