"""Second factors' secrets are sealed inside allauth's rows: this brings them to the present form."""

from __future__ import annotations

import base64
from collections.abc import Iterator

from allauth.mfa.adapter import get_adapter
from allauth.mfa.models import Authenticator
from django.db import transaction

from security.reseal import Resealer

OLD = b"\x01"
WHERE = {Authenticator.Type.TOTP: "secret", Authenticator.Type.RECOVERY_CODES: "seed"}
"""Which part of each kind's data the adapter's `encrypt` sealed."""


def waiting(stale: list[bytes]) -> int:
    """Return how many secrets wait."""
    return sum(1 for _ in _rows(stale))


def reseal(stale: list[bytes]) -> int:
    """Seal them anew; return how many."""
    count = 0
    adapter = get_adapter()
    for pk in list(_rows(stale)):
        with transaction.atomic():
            for row in Authenticator.objects.select_for_update().filter(pk=pk):
                part = WHERE[Authenticator.Type(row.type)]
                row.data[part] = adapter.encrypt(adapter.decrypt(row.data[part]))
                row.save(update_fields=["data"])
                count += 1
    return count


def _rows(stale: list[bytes]) -> Iterator[int]:
    for row in Authenticator.objects.filter(type__in=list(WHERE)).iterator():
        sealed = base64.b64decode(row.data.get(WHERE[Authenticator.Type(row.type)], ""))
        if sealed[:1] == OLD or sealed[1:17] in stale:
            yield row.pk


RESEALER = Resealer("second factors", waiting, reseal)
