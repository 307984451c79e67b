"""Second factors' secrets are sealed inside allauth's rows: this brings them to the present form."""

from __future__ import annotations

import base64
from collections.abc import Iterator

from allauth.mfa.adapter import get_adapter
from allauth.mfa.models import Authenticator
from django.db import transaction

from security.errors import UnsealError
from security.reseal import Resealer

OLD = b"\x01"
WHERE = {Authenticator.Type.TOTP: "secret", Authenticator.Type.RECOVERY_CODES: "seed"}
"""Which part of each kind's data the adapter's `encrypt` sealed."""


def waiting(stale: list[bytes]) -> int:
    """Return how many secrets wait."""
    return sum(1 for _ in _rows(stale))


def reseal(stale: list[bytes]) -> tuple[int, list[str]]:
    """Seal them anew; return how many, and which could not be opened: one person's must not stop everybody's start."""
    count, faults = 0, []
    for pk in list(_rows(stale)):
        try:
            count += _one(pk)
        except UnsealError as error:
            faults.append(f"The second factor {pk} was left as it is. {error}")
    return count, faults


@transaction.atomic
def _one(pk: int) -> int:
    adapter = get_adapter()
    rows = list(Authenticator.objects.select_for_update().filter(pk=pk))  # none where it is gone meanwhile
    for row in rows:
        part = WHERE[Authenticator.Type(row.type)]
        row.data[part] = adapter.encrypt(adapter.decrypt(row.data[part]))
        row.save(update_fields=["data"])
    return len(rows)


def _rows(stale: list[bytes]) -> Iterator[int]:
    for row in Authenticator.objects.filter(type__in=list(WHERE)).iterator():
        sealed = base64.b64decode(row.data.get(WHERE[Authenticator.Type(row.type)], ""))
        if sealed[:1] == OLD or sealed[1:17] in stale:
            yield row.pk


RESEALER = Resealer("second factors", waiting, reseal)
