"""What every view of the internal listener shares: who calls, what they may, and errors in one form (RFC 9457).

    @internal("agent")
    def data_keys(request: InternalRequest) -> HttpResponse: ...

The caller's identity comes from the ASGI scope, where only the listener puts it, from the peer's certificate.
"""

from __future__ import annotations

import functools
import json
import logging
import re
from collections.abc import Callable, Mapping
from typing import Any, cast

from django.core.exceptions import RequestDataTooBig
from django.http import HttpRequest, HttpResponse, JsonResponse

from security.transport.identities import CALLER, KINDS, Identity

logger = logging.getLogger(__name__)
NO_TEXT = re.compile("[\x00\ud800-\udfff]")
"""What JSON can say and neither UTF-8 nor PostgreSQL can hold."""
TITLES = {
    400: "The request can't be read.",
    403: "This identity may not do that.",
    404: "There is no such thing here.",
    405: "This address does not take that method.",
    410: "It is gone.",
    413: "The request is too large.",
    429: "You ask too often.",
    500: "Hearth failed.",
}


class InternalRequest(HttpRequest):
    """A request whose caller is known."""

    caller: Identity


class Problem(Exception):
    """Raise it in a view: the answer is this problem. `type` is a short word that callers compare; never a secret."""

    def __init__(self, status: int, type: str, detail: str, *, title: str = "") -> None:  # noqa: A002 (RFC 9457's word)
        super().__init__(detail)
        self.status, self.type, self.detail = status, type, detail
        self.title = title or TITLES.get(status, "The request was refused.")

    def response(self) -> HttpResponse:
        body = {"type": self.type, "title": self.title, "detail": self.detail}
        answer = JsonResponse(body, status=self.status, content_type="application/problem+json")
        answer["Cache-Control"] = "no-store"
        return answer


View = Callable[..., HttpResponse]


def internal(*kinds: str, methods: tuple[str, ...] = ("POST",)) -> Callable[[View], View]:
    """Make a view of the internal listener, for callers of these kinds and these methods only."""
    if unknown := set(kinds) - set(KINDS):
        raise ValueError(f"{sorted(unknown)} are no kinds of callers. They are {', '.join(KINDS)}.")

    def decorate(view: View) -> View:
        @functools.wraps(view)
        def guarded(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
            try:
                known = _admitted(request, kinds, methods)
                answer = view(known, *args, **kwargs)
            except Problem as problem:
                answer = problem.response()
                if problem.status == 405:
                    answer["Allow"] = ", ".join(methods)
            except Exception:
                logger.exception("The internal call %s failed.", request.path)
                answer = Problem(500, "failed", "Nothing was promised. Try again later.").response()
            answer["Cache-Control"] = "no-store"
            return answer

        return guarded

    return decorate


def payload(request: HttpRequest) -> Mapping[str, Any]:
    """Return the JSON object that was sent, or raise `Problem`."""
    try:
        found = json.loads(request.body)
    except RequestDataTooBig:
        raise Problem(413, "too-large", "Nothing was done.") from None
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise Problem(400, "malformed", "Send one JSON object. Nothing was done.")
    return found


def text(sent: Mapping[str, Any], name: str, *, longest: int = 255) -> str:
    """Return a text field of `payload`, or raise `Problem`."""
    value = sent.get(name)
    if not isinstance(value, str) or not value or len(value) > longest or NO_TEXT.search(value):
        raise Problem(400, "malformed", f"{name!r} must be a text of 1 to {longest} characters. Nothing was done.")
    return value


def _admitted(request: HttpRequest, kinds: tuple[str, ...], methods: tuple[str, ...]) -> InternalRequest:
    caller = getattr(request, "scope", {}).get(CALLER)
    if not isinstance(caller, Identity) or caller.kind not in kinds:
        who = f"You are {caller}." if isinstance(caller, Identity) else "You are nobody that Hearth knows."
        raise Problem(403, "not-allowed", f"{who} Nothing was done.")
    if request.method not in methods:
        raise Problem(405, "wrong-method", f"Use {' or '.join(methods)}. Nothing was done.")
    known = cast("InternalRequest", request)
    known.caller = caller
    return known


def bad_request(request: HttpRequest, exception: Exception | None = None) -> HttpResponse:  # noqa: ARG001 (Django's signature)
    return Problem(400, "malformed", "Nothing was done.").response()


def not_allowed(request: HttpRequest, exception: Exception | None = None) -> HttpResponse:  # noqa: ARG001 (as above)
    return Problem(403, "not-allowed", "Nothing was done.").response()


def not_found(request: HttpRequest, exception: Exception | None = None) -> HttpResponse:  # noqa: ARG001 (as above)
    return Problem(404, "not-found", "Nothing was done.").response()


def broken(request: HttpRequest) -> HttpResponse:  # noqa: ARG001 (as above)
    return Problem(500, "failed", "Nothing was promised. Try again later.").response()
