"""The pages of a restore: who may use them, what can be chosen, and what they say before anything is done."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from accounts.models import User
from backups.models import Line, RegionStores, Restore, RestorePoint, ServerBackups, Store
from provisioning.models import Operation
from tenants.models import Server
from tests.backups.restoring.restorable import LINE, add_point, bring_back, hour_ago
from tests.cast import client_for
from tests.provisioning.fakes import ScriptedProvider

pytestmark = pytest.mark.django_db(transaction=True)


def url(name: str, server: Server, *more: object) -> str:
    return reverse(name, args=[server.organisation.slug, server.pk, *more])


def page(client: Client, address: str, **data: str) -> str:
    answer = client.get(address, data)
    assert answer.status_code == 200
    return answer.content.decode()


def at(moment: object) -> str:
    return f"{moment:%Y-%m-%dT%H:%M:%S}"


def test_a_time_is_chosen_looked_at_and_brought_back(berry: Server, alice: User, provider: ScriptedProvider) -> None:
    client, address, wanted = client_for(alice), url("server_restore", berry), hour_ago()
    assert address in page(client, url("server_backups", berry))
    first = page(client, address)
    assert 'type="datetime-local"' in first
    assert "What you get back" not in first
    shown = page(client, address, what="moment", moment=at(wanted))
    assert "What it no longer has" in shown
    assert f"Type {berry.server_name} to replace" in shown
    assert not Restore.objects.exists(), "looking changes nothing"
    said = {"what": "moment", "moment": f"{wanted:%Y-%m-%d %H:%M:%S}", "mode": "switch"}
    refused = client.post(address, said | {"confirm": "berry"}).content.decode()
    assert "That is not the name of this server" in refused
    assert not Restore.objects.exists()
    assert client.post(address, said | {"confirm": berry.server_name}).status_code == 302
    row = Restore.objects.get()
    assert (row.mode, row.moment, row.point) == ("switch", wanted, "")
    assert "Bring the backup back beside the server" in page(client, url("server", berry))
    bring_back(provider, row)
    shown = page(client, url("server_backups", berry))
    assert "What the server had before it was restored" in shown
    assert url("restore_go_back", berry, row.pk) in shown


def test_a_point_is_brought_back_beside_switched_to_and_gone_back_from(
    berry: Server, alice: User, provider: ScriptedProvider
) -> None:
    client, address = client_for(alice), url("server_restore", berry)
    point = RestorePoint.objects.latest("at")
    said = {"what": "point", "point": point.identity}
    assert "Look into a copy first" in page(client, address, **said)
    assert client.post(address, said | {"mode": "beside"}).status_code == 302
    row = Restore.objects.get()
    assert (row.mode, row.point, row.moment) == ("beside", point.identity, point.at)
    assert "Being brought back" in page(client, url("server_backups", berry))
    bring_back(provider, row)
    shown = page(client, url("server_backups", berry))
    assert provider.url in shown
    for name, done in (("switch_to_copy", "before"), ("restore_go_back", "copy")):
        address = url(name, berry, row.pk)
        assert address in page(client, url("server_backups", berry))
        assert f"Type {berry.server_name}" in page(client, address)
        assert "not the name" in client.post(address, {"confirm": ""}).content.decode()
        assert client.post(address, {"confirm": berry.server_name}).status_code == 302
        bring_back(provider, Restore.objects.get(), Operation.objects.latest("created"))
        row.refresh_from_db()
        assert row.holds == done
    client.post(url("drop_copy", berry, row.pk))
    assert Operation.objects.latest("created").kind == "drop"


def test_members_may_not_and_strangers_find_nothing(
    berry: Server, alice: User, bob: User, charlie: User, provider: ScriptedProvider
) -> None:
    client_for(alice).post(url("server_restore", berry), _beside())
    row = Restore.objects.get()
    bring_back(provider, row)
    copy = [url(name, berry, row.pk) for name in ("switch_to_copy", "restore_go_back", "drop_copy")]
    operations = Operation.objects.count()
    member, stranger = client_for(bob), client_for(charlie)
    for address in (url("server_restore", berry), *copy):
        assert member.post(address).status_code == 403
        assert stranger.post(address).status_code == 404
        assert Client().post(address).status_code == 302
    for address in (url("server_restore", berry), *copy[:2]):
        assert member.get(address).status_code == 403
        assert stranger.get(address).status_code == 404
    assert Operation.objects.count() == operations
    shown = page(member, url("server_backups", berry))
    assert provider.url in shown
    assert "Switch to it" not in shown


def test_a_copy_of_another_server_is_not_found(berry: Server, alice: User) -> None:
    client = client_for(alice)
    client.post(url("server_restore", berry), _beside())
    row = Restore.objects.get()
    whose = {"organisation": berry.organisation, "region": "local", "version": "1.0", "users": 1}
    other = Server.objects.create(name="o", server_name="o.hearth.localhost", **whose)
    for name in ("switch_to_copy", "restore_go_back"):
        assert client.get(url(name, other, row.pk)).status_code == 404
    assert client.post(url("drop_copy", other, row.pk)).status_code == 404


@pytest.mark.parametrize(
    ("away", "sentence"),
    [(timedelta(days=-3), "can&#x27;t be restored"), (timedelta(days=1), "Any second can be chosen")],
)
def test_before_the_first_and_after_the_last_moment_the_window_is_named(
    berry: Server, alice: User, away: timedelta, sentence: str
) -> None:
    client, address = client_for(alice), url("server_restore", berry)
    said = {"what": "moment", "moment": at(timezone.now() + away)}
    for answer in (client.get(address, said), client.post(address, said | {"confirm": berry.server_name})):
        text = answer.content.decode()
        assert sentence in text
        begun = Line.objects.get().begun
        assert begun is not None
        assert f"{begun + timedelta(seconds=1):%Y-%m-%d %H:%M:%S}" in text
        assert "What you get back" not in text
    assert not Restore.objects.exists()


def test_a_gap_can_not_be_chosen(berry: Server, alice: User) -> None:
    now = timezone.now()
    Line.objects.filter(identity=LINE).update(until=now - timedelta(hours=5), ended="SlotLost")
    later = Line.objects.create(
        server=berry, identity="20261121t000000z-00000001", begun=now - timedelta(hours=3), until=now
    )
    add_point(berry, now - timedelta(hours=3), line=later.identity)
    client, address = client_for(alice), url("server_restore", berry)
    shown = page(client, address, what="moment", moment=at(now - timedelta(hours=4)))
    assert "can&#x27;t be restored" in shown
    assert "What you get back" in page(client, address, what="moment", moment=at(now - timedelta(hours=6)))


def test_of_a_damaged_point_the_whole_ones_near_it_are_named(berry: Server, alice: User) -> None:
    older, newer = RestorePoint.objects.order_by("at")
    damaged = add_point(berry, older.at + timedelta(hours=2), state="damaged", damage="base.tar.zst is missing.")
    client, address = client_for(alice), url("server_restore", berry)
    shown = page(client, address, what="moment", moment=at(damaged.at + timedelta(hours=1)))
    assert "is damaged: base.tar.zst is missing." in shown
    assert f"{older.at:%Y-%m-%d %H:%M:%S}" in shown
    assert f"{newer.at:%Y-%m-%d %H:%M:%S}" in shown
    assert damaged.identity not in page(client, address)


def test_what_the_first_store_lost_is_read_from_the_second(
    berry: Server, alice: User, provider: ScriptedProvider
) -> None:
    client, address = client_for(alice), url("server_restore", berry)
    older, newer = RestorePoint.objects.order_by("at")
    assert "Read from" not in page(client, address)
    second = Store.objects.create(code="there", name="There", kind="folder", folder="/mnt/there")
    RegionStores.objects.update(second=second)
    RestorePoint.objects.filter(pk=older.pk).update(copied=timezone.now(), state="damaged", damage="It is gone.")
    ServerBackups.objects.update(copied_until=older.at + timedelta(hours=3))
    shown = page(client, address, what="point", point=older.identity)
    assert "The second store has a copy of it" in shown
    said = {"what": "point", "point": older.identity, "store": "there"}
    assert "What you get back" in page(client, address, **said)
    assert "does not have this restore point yet" in page(client, address, **said | {"point": newer.identity})
    late = {"what": "moment", "store": "there", "moment": at(newer.at + timedelta(hours=1))}
    assert "That store has everything up to" in page(client, address, **late)
    within = late | {"moment": at(older.at + timedelta(hours=2))}
    assert "What you get back" in page(client, address, **within)
    assert client.post(address, within | {"mode": "beside"}).status_code == 302
    row = Restore.objects.get()
    bring_back(provider, row)
    assert provider.recoveries[str(row.instance)].request["store"]["path"].startswith("/mnt/there/")


@pytest.mark.parametrize("moment", ["", "yesterday", "2026-13-01T00:00", "0001-01-01T00:00:00", "9999-12-31T23:59:59"])
def test_nonsense_is_answered(berry: Server, alice: User, moment: str) -> None:
    client, address = client_for(alice), url("server_restore", berry)
    assert "What you get back" not in page(client, address, what="moment", moment=moment)
    answer = client.post(address, {"what": "moment", "moment": moment, "mode": "switch", "confirm": berry.server_name})
    assert answer.status_code == 200
    assert not Restore.objects.exists()


def test_a_server_that_is_deleted_or_has_nothing_says_so(berry: Server, alice: User) -> None:
    client, address = client_for(alice), url("server_restore", berry)
    RestorePoint.objects.update(state="gone")
    Line.objects.all().delete()
    assert "Nothing can be restored yet" in page(client, address)
    Server.objects.filter(pk=berry.pk).update(desired="deleted")
    assert "is being deleted" in page(client, address)


def test_the_page_costs_the_same_with_many_points(
    berry: Server, alice: User, django_assert_max_num_queries: object
) -> None:
    client, address = client_for(alice), url("server_restore", berry)
    for hours in range(1, 40):
        add_point(berry, timezone.now() - timedelta(hours=hours))
    with django_assert_max_num_queries(30):  # type: ignore[operator]
        client.get(address, {"what": "moment", "moment": at(hour_ago())})


def _beside() -> dict[str, str]:
    return {"what": "point", "point": RestorePoint.objects.latest("at").identity, "mode": "beside"}
