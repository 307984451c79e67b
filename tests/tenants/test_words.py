"""What pages say and offer first: nothing twice, nothing dangerous by reflex, numbers that people can read."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from django.test import Client
from django.urls import reverse

from accounts.models import User
from tenants import dns, limits, releases
from tenants.errors import Refused
from tenants.models import Domain, Organisation, Plan, Server

pytestmark = pytest.mark.django_db


@pytest.fixture
def hers(alice: User, client_for: Callable[[User], Client]) -> Client:
    return client_for(alice)


def test_no_step_back_to_an_older_version_by_reflex(
    hers: Client, acme: Organisation, make_server: Callable[[str], Server]
) -> None:
    server = make_server("chat")
    assert server.version == releases.newest().version
    path = reverse("server_upgrade", args=[acme.slug, server.pk])
    page = hers.get(path).content.decode()
    assert re.search(r'<option value=""[^>]*>Choose an older version<', page)
    assert "the newest that Hearth offers" in page
    answer = hers.post(path, {"generation": server.generation, "version": ""}).content.decode()
    assert "Choose a version." in answer
    server.refresh_from_db()
    assert (server.version, server.generation) == (releases.newest().version, 1)


def test_what_dns_answered_is_said_once(hers: Client, acme: Organisation, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: Any) -> None:
        raise Refused("DNS knows no such record.")

    monkeypatch.setattr(dns, "check", missing)
    domain = Domain.objects.create(organisation=acme, name="example.org")
    page = hers.post(reverse("domain_check", args=[acme.slug, domain.pk]), follow=True).content.decode()
    assert page.count("DNS knows no such record.") == 1


def test_a_plan_has_readable_numbers(hers: Client, acme: Organisation) -> None:
    page = hers.get(reverse("organisation_plan", args=[acme.slug])).content.decode()
    assert "3,000 GB" in page
    assert "set aside for your servers" in page


def test_a_refused_plan_is_told_in_words(plans: dict[str, Plan]) -> None:
    with pytest.raises(Refused, match=r"users active in a month 1,200 of 50\b.*disk \(SSD\) 40 of 20 GB"):
        limits.check_change(plans["ember"], limits.Usage(users=1200, disk_gb=40))
