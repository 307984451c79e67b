"""What an organisation sees of recovery tests, and who may ask for one."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from accounts.models import User
from backups.models import Proof, RestorePoint, ServerBackups
from tenants.models import Server
from tests.cast import client_for, make_user

pytestmark = pytest.mark.django_db


@pytest.fixture
def address(server: Server) -> str:
    now = timezone.now()
    ServerBackups.objects.create(server=server, reported=now, until=now)
    RestorePoint.objects.create(server=server, identity="20261120t000000z-00000000", at=now, kind="daily", line="l")
    return reverse("server_proofs", args=[server.organisation.slug, server.pk])


@pytest.fixture
def proof(server: Server) -> Proof:
    """A recovery test of yesterday that passed."""
    begun = timezone.now() - timedelta(days=1)
    return Proof.objects.create(
        server=server, kind="recovery", point="20261120t000000z-00000000", begun=begun,
        ended=begun + timedelta(seconds=40), result="passed", rto_seconds=33.0, rpo_seconds=4.0,
        summary="The server of 2026-11-20 was back after 33 seconds.",
        evidence={
            "restored": {"last_commit": "2026-11-20T00:00:00Z", "media_files": 3, "media_hashed": True},
            "checks": {"synapse_version": "1.149.1", "signing_key_id": "ed25519:a", "signed_in": True},
            "compared": {"accounts": 2, "rooms": 1, "living": "asked", "accounts_compared": 2, "accounts_missing": [],
                         "events_compared": 50, "events_missing": [], "events_changed": []},
        },
    )  # fmt: skip


def test_a_member_reads_the_evidence_in_plain_words(address: str, proof: Proof, bob: User) -> None:
    client = client_for(bob)
    page = client.get(address).content.decode()
    assert "was back after 33 seconds" in page
    assert "Test a restore now" not in page
    page = client.get(f"{address}{proof.pk}/").content.decode()
    for words in ("33 s", "3, each compared with its keyed hash", "Synapse 1.149.1 answered", "2, none missing",
                  "50, all are there and alike", "pg_amcheck is not part of this PostgreSQL"):  # fmt: skip
        assert words in page, words


def test_a_stranger_finds_nothing(address: str, proof: Proof, charlie: User, bob: User) -> None:
    stranger = client_for(charlie)
    for answer in (stranger.get(address), stranger.get(f"{address}{proof.pk}/"), stranger.post(f"{address}now/")):
        assert answer.status_code == 404
    assert client_for(bob).post(f"{address}now/").status_code == 403
    assert Client().get(address).status_code == 302


def test_another_servers_proof_is_not_found(address: str, proof: Proof, make_server: object, alice: User) -> None:
    other = make_server("other")  # type: ignore[operator]
    there = reverse("server_proof", args=[other.organisation.slug, other.pk, proof.pk])
    assert client_for(alice).get(there).status_code == 404


def test_an_owner_asks_for_one(address: str, alice: User) -> None:
    client = client_for(alice)
    page = client.post(f"{address}now/", follow=True).content.decode()
    assert "Your server is not touched" in page
    assert "Waits for room" in page
    assert "Test a restore now" not in page
    assert "in progress already" in client.post(f"{address}now/", follow=True).content.decode()
    assert Proof.objects.count() == 1


@pytest.mark.parametrize(("result", "words"), [("missed", "could not be tried out"), ("failed", "was not touched")])
def test_a_failure_says_what_it_means(address: str, proof: Proof, alice: User, result: str, words: str) -> None:
    Proof.objects.update(result=result, summary="The disk has no room.", evidence={})
    page = client_for(alice).get(f"{address}{proof.pk}/").content.decode()
    assert words in page
    assert "The disk has no room." in page


def test_the_card_says_when_it_was_proved_last(address: str, proof: Proof, server: Server, alice: User) -> None:
    Proof.objects.create(
        server=server, kind="recovery", begun=timezone.now(), ended=timezone.now(), result="missed", summary="No room."
    )
    page = client_for(alice).get(reverse("server_backups", args=[server.organisation.slug, server.pk]))
    text = page.content.decode()
    assert "Did not take place" in text
    assert "Last proved restore" in text
    assert "back in 33 s" in text


def test_staff_ask_for_one(address: str, server: Server) -> None:
    staff = client_for(make_user("staff@example.org", staff=True))
    point = RestorePoint.objects.get()
    said = {"action": "test_restore", "_selected_action": [str(point.pk)]}
    there = reverse("admin:backups_restorepoint_changelist")
    assert "begins as soon as there is room" in staff.post(there, said, follow=True).content.decode()
    assert Proof.objects.get().server == server
    assert "in progress already" in staff.post(there, said, follow=True).content.decode()
