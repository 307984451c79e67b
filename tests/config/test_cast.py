"""The tests' own ground: the cast can enter the members' area, and the network ends at this machine."""

from __future__ import annotations

import socket
from collections.abc import Callable

import pytest
from allauth.account.models import EmailAddress
from django.core.cache import cache
from django.test import Client
from pytest_socket import SocketConnectBlockedError

from accounts.factors import has_factor
from accounts.models import User


def test_the_cast_is_signed_in_with_a_second_factor(
    alice: User, bob: User, charlie: User, client_for: Callable[[User], Client]
) -> None:
    for person in (alice, bob, charlie):
        assert EmailAddress.objects.get(user=person).verified
        assert has_factor(person)
        assert client_for(person).session["_auth_user_id"] == str(person.pk)


def test_redis_is_real_and_empty() -> None:
    assert cache.get("x") is None
    cache.set("x", 1)
    assert cache.get("x") == 1


def test_a_socket_off_loopback_is_refused() -> None:
    with socket.socket() as outside, pytest.raises((SocketConnectBlockedError, UserWarning)):
        outside.connect(("192.0.2.1", 80))
