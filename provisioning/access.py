"""The only way from a request to an operation."""

from __future__ import annotations

import uuid
from typing import Any

from django.http import Http404

from provisioning.models import Operation
from tenants.access import MISSING, Access, get_server


def get_operation(
    user: Any, slug: str, server_id: uuid.UUID, operation_id: uuid.UUID, *, owner: bool = False
) -> tuple[Access, Operation]:
    """Return an operation on a server of the organisation; refuses like `tenants.access.get_server`."""
    access, server = get_server(user, slug, server_id, owner=owner)
    operation = Operation.objects.filter(server=server, pk=operation_id).first()
    if operation is None:
        raise Http404(MISSING)
    operation.server = server
    return access, operation
