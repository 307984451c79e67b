"""Second factors' secrets are sealed inside allauth's rows: this brings them to the present form."""

from __future__ import annotations

import base64
from collections.abc import Iterator

from allauth.mfa.adapter import get_adapter
from allauth.mfa.models import Authenticator
from django.contrib.sessions.models import Session
from django.db import transaction

from accounts.adapters import TOTP_PURPOSE
from accounts.sessions import PURPOSE, SessionStore
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


def sessions_waiting(stale: list[bytes]) -> int:
    """Return how many sessions are sealed by a key that must go. Those of version 1 are left: they end with it."""
    return sum(1 for _ in _sessions(stale))


def reseal_sessions(stale: list[bytes]) -> tuple[int, list[str]]:
    """Seal them anew; one that can't be opened is an empty one anyway."""
    count = 0
    for key in list(_sessions(stale)):
        with transaction.atomic():
            for row in Session.objects.select_for_update().filter(pk=key):
                row.session_data = SessionStore().encode(SessionStore().decode(row.session_data))
                row.save(update_fields=["session_data"])
                count += 1
    return count, []


def _sessions(stale: list[bytes]) -> Iterator[str]:
    if stale:
        for row in Session.objects.iterator():
            if base64.b64decode(row.session_data[:24])[1:17] in stale:
                yield row.pk


RESEALER = Resealer("second factors", waiting, reseal, purposes=(TOTP_PURPOSE,))
SESSIONS = Resealer("sessions", sessions_waiting, reseal_sessions, purposes=(PURPOSE,))
