"""The data-key service's addresses on the internal listener. Who calls is what the certificate says."""

from __future__ import annotations

import base64
import functools
import uuid
from collections.abc import Callable, Mapping
from typing import Any

from django.http import HttpResponse, JsonResponse
from django.views.decorators.debug import sensitive_variables

from security.datakeys import services
from security.datakeys.errors import DataKeyRefused, TooMany
from security.secret import Key
from security.transport.calls import InternalRequest, Problem, internal, payload, text

View = Callable[[InternalRequest], HttpResponse]


def refusals(view: View) -> View:
    """Answer a refusal as a problem."""

    @functools.wraps(view)
    def told(request: InternalRequest) -> HttpResponse:
        try:
            return view(request)
        except DataKeyRefused as refusal:
            answer = Problem(refusal.status, refusal.code, str(refusal)).response()
            if isinstance(refusal, TooMany):
                answer["Retry-After"] = str(refusal.wait)
            return answer

    return told


@internal("agent")
@refusals
@sensitive_variables()
def fresh(request: InternalRequest) -> HttpResponse:
    """{purpose, object} → {id, key}: a new data key for one object of the caller's own server."""
    sent = payload(request)
    identity, key = services.fresh(_server(request), text(sent, "purpose"), text(sent, "object"))
    return _given(identity, key)


@internal("agent")
@refusals
@sensitive_variables()
def unwrap(request: InternalRequest) -> HttpResponse:
    """{grant, id} → {id, key}: a data key of the backups that the caller restores."""
    sent = payload(request)
    identity = _uuid(sent, "id")
    return _given(identity, services.unwrap(_server(request), _uuid(sent, "grant"), identity))


@internal("agent")
@refusals
def publish(request: InternalRequest) -> HttpResponse:
    """{ids} → {}: every place of key bundles holds these keys, so a manifest may name them."""
    sent = payload(request).get("ids")
    if not isinstance(sent, list) or len(sent) > services.MOST:
        raise Problem(400, "malformed", f"'ids' must be a list of at most {services.MOST} ids. Nothing was done.")
    services.publish_keys(_server(request), [_uuid({"id": each}, "id") for each in sent])
    return JsonResponse({})


def _server(request: InternalRequest) -> uuid.UUID:
    return uuid.UUID(request.caller.name)


def _uuid(sent: Mapping[str, Any], name: str) -> uuid.UUID:
    value = text(sent, name, longest=36)
    try:
        return uuid.UUID(value)
    except ValueError:
        raise Problem(400, "malformed", f"{name!r} must be a UUID. Nothing was done.") from None


@sensitive_variables()
def _given(identity: uuid.UUID, key: Key) -> HttpResponse:
    with key:
        return JsonResponse({"id": str(identity), "key": base64.b64encode(key.value).decode()})
