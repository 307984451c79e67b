"""Whose a server is, for its agent's data keys: until everything of it is gone."""

from __future__ import annotations

import uuid
from collections.abc import Callable

from django.utils import timezone

from security.datakeys.grants import owner_of
from tenants.models import Organisation, Server

Make = Callable[..., Server]


def test_it_works(acme: Organisation, make_server: Make) -> None:
    server = make_server()
    assert owner_of(server.pk) == acme.pk
    assert owner_of(uuid.uuid4()) is None
    Server.objects.filter(pk=server.pk).update(desired=Server.Desired.DELETED, delete_requested=timezone.now())
    assert owner_of(server.pk) == acme.pk  # its final backup is still to be made
    Server.objects.filter(pk=server.pk).update(deleted=timezone.now())
    assert owner_of(server.pk) is None
