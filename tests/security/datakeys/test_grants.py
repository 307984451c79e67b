"""Grants: leased, fenced, one for each target, and each change in the trail."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable
from datetime import timedelta

import pytest
from django.db import connection
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from accounts.models import User
from audit.models import AuditEvent
from audit.services import SYSTEM
from security.datakeys import grants
from security.datakeys.errors import DataKeyRefused, GrantEnded, GrantTaken, KeysErased, Malformed, ServerGone
from security.keyring import deks, erasure
from security.keyring.deks import Context
from security.keyring.seams import seams
from security.models import PLATFORM, BundleFile, UnwrapGrant
from tests.cast import make_user
from tests.security.datakeys.conftest import ACME, ELSEWHERE, FOREIGN, HOLDER, OTHER, SOURCE, TARGET
from tests.together import at_once

pytestmark = pytest.mark.django_db
Make = Callable[..., UnwrapGrant]
HOUR = timedelta(hours=1)


def expire(row: UnwrapGrant) -> None:
    UnwrapGrant.objects.filter(pk=row.pk).update(expires_at=timezone.now() - timedelta(seconds=1))


def verbs() -> list[str]:
    return list(AuditEvent.objects.filter(verb__startswith="grant.").order_by("id").values_list("verb", flat=True))


def test_it_works(grant: Make) -> None:
    before = timezone.now()
    row = grant(lease=timedelta(minutes=10))
    assert before + timedelta(minutes=9) < row.expires_at < timezone.now() + timedelta(minutes=11)
    later = grants.renew(SYSTEM, row.pk, fence=1)
    assert later.expires_at > row.expires_at
    assert grants.revoke(SYSTEM, row.pk, reason="the restore is done")
    assert not grants.revoke(SYSTEM, row.pk, reason="again")
    assert verbs() == ["grant.open", "grant.renew", "grant.revoke"]
    event = AuditEvent.objects.get(verb="grant.open")
    assert (event.organisation_id, event.after["source"], event.after["target"]) == (ACME, str(SOURCE), str(TARGET))
    assert AuditEvent.objects.get(verb="grant.revoke").after["because"] == "the restore is done"


def test_a_step_that_was_cut_off_gets_the_same_grant(grant: Make) -> None:
    first = grant(lease=timedelta(minutes=5))
    again = grant()
    assert again.pk == first.pk
    assert again.expires_at > first.expires_at


def test_two_restores_into_one_server(grant: Make) -> None:
    first = grant()
    with pytest.raises(GrantTaken):
        grant(holder=uuid.uuid4(), fence=99)
    assert grant(target=ELSEWHERE, holder=uuid.uuid4()).pk != first.pk
    grants.revoke(SYSTEM, first.pk, reason="done")
    grant(holder=uuid.uuid4())


@pytest.mark.django_db(transaction=True)
def test_two_restores_at_the_same_moment(grant: Make) -> None:
    def attempt() -> object:
        try:
            return grant(holder=uuid.uuid4())
        except GrantTaken as refusal:
            return refusal

    outcomes = at_once([attempt] * 4)
    assert sorted(type(each).__name__ for each in outcomes) == ["GrantTaken"] * 3 + ["UnwrapGrant"]
    assert UnwrapGrant.objects.filter(target=TARGET, revoked_at=None).count() == 1


def test_whoever_takes_the_work_over_takes_the_grant_over(grant: Make) -> None:
    slept = grant(fence=1)
    taken = grant(fence=2)
    assert taken.pk != slept.pk
    slept.refresh_from_db()
    assert slept.revoked_because == "replaced by its holder"
    with pytest.raises(GrantEnded):
        grants.renew(SYSTEM, slept.pk, fence=1)
    with pytest.raises(GrantTaken):
        grants.renew(SYSTEM, taken.pk, fence=1)
    with pytest.raises(GrantTaken):
        grant(fence=1)
    grants.revoke(SYSTEM, taken.pk, reason="done")
    with pytest.raises(GrantTaken):  # it slept until all was over
        grant(fence=1)


def test_one_that_expired_is_never_revived(grant: Make) -> None:
    row = grant()
    expire(row)
    with pytest.raises(GrantEnded):
        grants.renew(SYSTEM, row.pk, fence=1)
    new = grant()
    assert new.pk != row.pk
    row.refresh_from_db()
    assert row.revoked_because == "expired"
    expire(new)
    grant(holder=uuid.uuid4())  # an expired one stands in nobody's way


def test_one_that_is_unknown_is_not_renewed(db: None) -> None:
    with pytest.raises(GrantEnded):
        grants.renew(SYSTEM, uuid.uuid4(), fence=1)
    assert not grants.revoke(SYSTEM, uuid.uuid4(), reason="x")


def test_one_is_kept_while_its_work_looks_at_itself(grant: Make) -> None:
    row, ten, hour = grant(lease=timedelta(minutes=10)), timedelta(minutes=10), timedelta(hours=1)
    kept = grants.keep(SYSTEM, row.pk, fence=1, lease=ten)
    assert kept is not None
    assert kept.expires_at == row.expires_at, "more than half of it is left"
    kept = grants.keep(SYSTEM, row.pk, fence=1, lease=hour)
    assert kept is not None
    assert kept.expires_at > row.expires_at
    assert verbs() == ["grant.open", "grant.renew"]
    expire(row)
    assert grants.keep(SYSTEM, row.pk, fence=1) is None, "it expired before anybody looked"
    grants.revoke(SYSTEM, row.pk, reason="done")
    for gone in (row.pk, uuid.uuid4(), None):
        assert grants.keep(SYSTEM, gone, fence=1) is None


def test_one_of_another_fence_is_not_kept(grant: Make) -> None:
    row = grant(fence=2, lease=timedelta(minutes=10))
    with pytest.raises(GrantTaken):
        grants.keep(SYSTEM, row.pk, fence=1)
    row.refresh_from_db()
    assert row.expires_at < timezone.now() + timedelta(minutes=11)


def test_all_of_a_holder_end_together(grant: Make) -> None:
    mine, other = [grant(), grant(target=ELSEWHERE)], grant(target=SOURCE, holder=uuid.uuid4())
    assert grants.revoke_held(SYSTEM, HOLDER, reason="the restore ended") == 2
    assert set(UnwrapGrant.objects.filter(revoked_because="the restore ended")) == set(mine)
    assert list(UnwrapGrant.objects.filter(revoked_at=None)) == [other]
    assert grants.revoke_held(SYSTEM, HOLDER, reason="again") == 0
    assert verbs().count("grant.revoke") == 2


@pytest.mark.parametrize("lease", [timedelta(0), -HOUR, HOUR + timedelta(seconds=1)])
def test_it_lasts_an_hour_at_most(grant: Make, lease: timedelta) -> None:
    with pytest.raises(Malformed, match="at most"):
        grant(lease=lease)
    row = grant()
    with pytest.raises(Malformed):
        grants.renew(SYSTEM, row.pk, fence=1, lease=lease)


@pytest.mark.parametrize("reason", ["", "  ", "x" * 201])
def test_it_has_a_reason(grant: Make, reason: str) -> None:
    with pytest.raises(Malformed, match="reason"):
        grant(reason=reason)


def test_the_target_is_the_organisations_own(grant: Make, servers: dict[uuid.UUID, uuid.UUID]) -> None:
    for target in (FOREIGN, uuid.uuid4()):
        with pytest.raises(ServerGone):
            grant(target=target)
    del servers[TARGET]
    with pytest.raises(ServerGone):
        grant()
    servers[TARGET] = PLATFORM
    with pytest.raises(ServerGone):
        grant(organisation=PLATFORM)
    assert verbs() == []


def test_the_source_may_be_gone(grant: Make, servers: dict[uuid.UUID, uuid.UUID]) -> None:
    del servers[SOURCE]
    grant()


def test_two_that_answer_differently_are_believed_neither(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seams, "owner_of_server", [lambda _: None, lambda _: ACME, lambda _: ACME])
    assert grants.owner_of(TARGET) == ACME
    monkeypatch.setattr(seams, "owner_of_server", [lambda _: OTHER, lambda _: ACME])
    assert grants.owner_of(TARGET) is None


def test_nothing_is_restored_for_who_was_erased(grant: Make) -> None:
    deks.new_data_key(Context(ACME, "backup.base", SOURCE))
    erasure.request(SYSTEM, ACME)
    erasure.advance()
    with pytest.raises(KeysErased):
        grant()


def test_old_ones_are_forgotten(grant: Make) -> None:
    old, live = grant(), grant(target=ELSEWHERE)
    UnwrapGrant.objects.filter(pk__in=[old.pk, live.pk]).update(created=timezone.now() - timedelta(days=91))
    expire(old)
    assert grants.forget_old() == 1
    assert UnwrapGrant.objects.get() == live


def test_staff_see_who_may_open_what(grant: Make, client_for: Callable[[User], Client]) -> None:
    BundleFile.objects.create(place="one", name="a.hkb", kind="full", roots=[], created=timezone.now())
    live, expired, revoked = grant(), grant(target=ELSEWHERE), grant(target=SOURCE)
    expire(expired)
    grants.revoke(SYSTEM, revoked.pk, reason="the restore was cancelled")
    client = client_for(make_user("sally@example.org", staff=True))
    page = client.get(reverse("admin:security_unwrapgrant_changelist")).content.decode()
    for words in ("Live", "Expired", "the restore was cancelled", str(live.source)):
        assert words in page
    assert "a.hkb" in client.get(reverse("admin:security_bundlefile_changelist")).content.decode()
    assert client.get(reverse("admin:security_unwrapgrant_change", args=[live.pk])).status_code == 200


@pytest.mark.django_db(transaction=True)
def test_a_revocation_waits_for_no_network_and_nobody_gets_past_it(grant: Make) -> None:
    """The writes of both are in one order: what was counted was counted before the revocation returned."""
    row = grant()
    began, go = threading.Event(), threading.Event()

    def renewing() -> None:
        from django.db import transaction  # noqa: PLC0415 (used in this thread alone)

        try:
            with transaction.atomic():
                grants.renew(SYSTEM, row.pk, fence=1)
                began.set()
                go.wait(60)
        finally:
            connection.close()

    thread = threading.Thread(target=renewing)
    thread.start()
    assert began.wait(60)
    threading.Timer(0.1, go.set).start()
    assert grants.revoke(SYSTEM, row.pk, reason="stop")
    thread.join(60)
    row.refresh_from_db()
    assert row.revoked_at is not None
    with pytest.raises(DataKeyRefused):
        grants.renew(SYSTEM, row.pk, fence=1)
    assert row.holder == HOLDER
