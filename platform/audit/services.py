"""The only writer of the trail."""

from __future__ import annotations

import uuid
from typing import Any, Protocol

from django.db import transaction

from audit.models import AuditEvent
from observability.context import current


class Actor(Protocol):
    """Whoever acts: a user, or `SYSTEM`."""

    @property
    def pk(self) -> uuid.UUID | None: ...


class System:
    """Hearth itself, acting by schedule."""

    pk = None

    def __str__(self) -> str:
        return "Hearth"


SYSTEM = System()


def record(
    *,
    actor: Any,
    verb: str,
    object: Any,  # noqa: A002 (the word of the trail)
    organisation_id: uuid.UUID | None = None,
    before: dict[str, Any] | None = None,
    after: dict[str, Any] | None = None,
) -> AuditEvent:
    """Write one event. Call it inside the verb's own transaction: either both are there or neither."""
    if not transaction.get_connection().in_atomic_block:
        raise RuntimeError(f"The audit event {verb} was written outside its verb's transaction.")
    context = current.get()
    return AuditEvent.objects.create(
        actor_id=getattr(actor, "pk", None),
        actor_label=str(actor)[:254],
        verb=verb,
        object_type=object._meta.model_name,
        object_id=str(object.pk),
        object_label=str(object)[:255],
        organisation_id=organisation_id,
        before=before or {},
        after=after or {},
        address=context.address,
        request_id=context.request_id,
    )
