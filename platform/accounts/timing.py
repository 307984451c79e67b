"""Answers that take as long whether or not an account has the address that was typed."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import wraps
from typing import Any

from django.http import HttpRequest, HttpResponse

# The work behind these forms takes some hundredths of a second, with an account a few thousandths more.
LEAST_S = 0.2


def evenly(view: Callable[..., HttpResponse]) -> Callable[..., HttpResponse]:
    """Let a sent form's answer wait until `LEAST_S` have passed."""

    @wraps(view)
    def run(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        end = time.monotonic() + LEAST_S
        response = view(request, *args, **kwargs)
        if request.method == "POST":
            time.sleep(max(0.0, end - time.monotonic()))
        return response

    return run
