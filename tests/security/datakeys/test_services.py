"""Who gets which data key: an agent for its own server, and a restore what it was granted, until it is not."""

from __future__ import annotations

import base64
import logging
import threading
import uuid
from collections.abc import Callable
from datetime import timedelta

import pytest
from django.db import connection
from django.utils import timezone
from pytest_django import Settings

from audit.models import AuditEvent
from audit.services import SYSTEM
from security.datakeys import allowances, errors, grants, services
from security.datakeys.allowances import Bucket
from security.errors import HsmError, NotPublished
from security.keyring import deks, erasure, keks, publish, rewrap
from security.keyring.deks import Context
from security.models import PLATFORM, BundleFile, DataKey, KeyEncryptionKey, UnwrapGrant
from security.secret import Key
from tests.security.datakeys.conftest import ACME, ELSEWHERE, FOREIGN, OTHER, SOURCE, TARGET
from tests.together import at_once

pytestmark = pytest.mark.django_db
Make = Callable[..., UnwrapGrant]
Servers = dict[uuid.UUID, uuid.UUID]


def backed_up(server: uuid.UUID = SOURCE, name: str = "base/1") -> tuple[uuid.UUID, bytes]:
    opened = services.fresh(server, "backup.base", name)
    return opened.id, bytes(opened.key.value)


def expire(row: UnwrapGrant) -> None:
    UnwrapGrant.objects.filter(pk=row.pk).update(expires_at=timezone.now() - timedelta(milliseconds=1))


# Fresh keys


def test_it_works(grant: Make) -> None:
    identity, key = backed_up()
    row = DataKey.objects.get()
    assert (row.owner, row.server, row.purpose, row.object, row.shared) == (
        ACME,
        SOURCE,
        "backup.base",
        "base/1",
        False,
    )
    lease = grant()
    assert bytes(services.unwrap(TARGET, lease.pk, identity).value) == key
    services.unwrap(TARGET, lease.pk, identity)
    lease.refresh_from_db()
    assert lease.opened == 2
    assert lease.last_used is not None


def test_each_object_has_a_key_of_its_own() -> None:
    assert backed_up() != backed_up()
    assert DataKey.objects.count() == 2


@pytest.mark.parametrize(
    "purpose",
    [
        "column:provisioning.serversecret.value",
        "purpose:accounts.totp",
        "backup",
        "backup.",
        "backup.A",
        "backup.x\n",
        "",
    ],
)
def test_a_purpose_is_a_backups(purpose: str) -> None:
    with pytest.raises(errors.Malformed, match="purpose"):
        services.fresh(SOURCE, purpose, "base/1")
    assert not DataKey.objects.exists()


@pytest.mark.parametrize("name", ["", "x" * 256, "a\x00b", "a\nb", "\ud800"])
def test_an_object_has_a_name(name: str) -> None:
    with pytest.raises(errors.Malformed, match="object"):
        services.fresh(SOURCE, "backup.base", name)


def test_a_server_that_is_gone_gets_none(servers: Servers) -> None:
    del servers[SOURCE]
    servers[TARGET] = PLATFORM
    for server in (SOURCE, TARGET, uuid.uuid4()):
        with pytest.raises(errors.ServerGone):
            backed_up(server)
    assert not KeyEncryptionKey.objects.exists()


def test_a_server_that_moved_gets_its_new_organisations(servers: Servers) -> None:
    backed_up()
    servers[SOURCE] = OTHER
    identity, _ = backed_up()
    assert DataKey.objects.get(pk=identity).owner == OTHER


def test_an_erased_organisation_gets_none(grant: Make) -> None:
    identity, _ = backed_up()
    lease = grant()
    erasure.request(SYSTEM, ACME)
    backed_up()  # until the date its backups go on
    erasure.advance()
    with pytest.raises(errors.KeysErased):
        backed_up()
    with pytest.raises(errors.NotFound):
        services.unwrap(TARGET, lease.pk, identity)


# Unwrapping


def test_only_the_target(grant: Make, caplog: pytest.LogCaptureFixture) -> None:
    identity, _ = backed_up()
    lease = grant()
    for server in (SOURCE, ELSEWHERE, FOREIGN):
        with pytest.raises(errors.NotFound):
            services.unwrap(server, lease.pk, identity)
    assert f"agent of server {FOREIGN} asked for data key {identity}" in caplog.text
    lease.refresh_from_db()
    assert lease.opened == 0


def test_unknown_and_foreign_are_told_alike(grant: Make) -> None:
    """Owner confusion: no key of another organisation, of another server, or of Hearth's own columns comes out here."""
    lease = grant()
    own = deks.new_data_key(Context(ACME, "backup.base", SOURCE, "x")).id
    told = set()
    closed = [
        uuid.uuid4(),
        deks.new_data_key(Context(OTHER, "backup.base", FOREIGN, "x")).id,
        deks.new_data_key(Context(OTHER, "backup.base", SOURCE, "x")).id,  # before it moved here
        deks.new_data_key(Context(ACME, "backup.base", ELSEWHERE, "x")).id,
        deks.new_data_key(Context(ACME, "backup.base", None, "x")).id,
        deks.new_data_key(Context(PLATFORM, "backup.base", SOURCE, "x")).id,
        deks.shared_data_key(Context(ACME, "column:provisioning.serversecret.value")).id,
        deks.shared_data_key(Context(ACME, "backup.shared", SOURCE)).id,
        deks.new_data_key(Context(ACME, "column:x.y", SOURCE, "x")).id,
        deks.shared_data_key(Context(PLATFORM, "purpose:accounts.totp")).id,
    ]
    for identity in closed:
        with pytest.raises(errors.NotFound) as refused:
            services.unwrap(TARGET, lease.pk, identity)
        told.add((refused.value.status, refused.value.code, str(refused.value)))
    with pytest.raises(errors.NotFound) as refused:
        services.unwrap(TARGET, uuid.uuid4(), own)
    told.add((refused.value.status, refused.value.code, str(refused.value)))
    assert len(told) == 1
    services.unwrap(TARGET, lease.pk, own)


def test_it_ends_in_the_middle_of_a_restore_and_goes_on_with_another(grant: Make) -> None:
    identity, key = backed_up()
    lease = grant()
    services.unwrap(TARGET, lease.pk, identity)
    expire(lease)
    with pytest.raises(errors.GrantEnded):
        services.unwrap(TARGET, lease.pk, identity)
    again = grant()
    assert bytes(services.unwrap(TARGET, again.pk, identity).value) == key
    grants.revoke(SYSTEM, again.pk, reason="cancelled")
    with pytest.raises(errors.GrantEnded):
        services.unwrap(TARGET, again.pk, identity)


def test_a_target_that_went_or_moved_gets_nothing_more(grant: Make, servers: Servers) -> None:
    identity, _ = backed_up()
    lease = grant()
    servers[TARGET] = OTHER
    with pytest.raises(errors.ServerGone, match="another organisation"):
        services.unwrap(TARGET, lease.pk, identity)
    del servers[TARGET]
    with pytest.raises(errors.ServerGone):
        services.unwrap(TARGET, lease.pk, identity)


def test_a_source_that_is_gone_is_what_restores_are_for(grant: Make, servers: Servers) -> None:
    identity, key = backed_up()
    del servers[SOURCE]
    assert bytes(services.unwrap(TARGET, grant().pk, identity).value) == key


def test_keys_of_before_a_rotation_and_of_a_compromise_open(grant: Make) -> None:
    identity, key = backed_up()
    keks.rotate(SYSTEM, ACME)
    keks.rotate(SYSTEM, ACME, compromised=True)
    lease = grant()
    assert bytes(services.unwrap(TARGET, lease.pk, identity).value) == key
    rewrap.drive(per_second=1e6)
    assert bytes(services.unwrap(TARGET, lease.pk, identity).value) == key


@pytest.mark.parametrize("way", ["revoked", "expired"])
def test_a_revocation_that_overtakes_an_unwrap_wins(grant: Make, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    """It comes after the first look and before the answer: what was opened is wiped, and not given."""
    identity, _ = backed_up()
    lease = grant()
    real, opened = deks.unwrap, []

    def slowly(row: DataKey) -> Key:
        opened.append(real(row))
        if way == "expired":
            expire(lease)
        else:
            grants.revoke(SYSTEM, lease.pk, reason="stop")
        return opened[0]

    monkeypatch.setattr(deks, "unwrap", slowly)
    with pytest.raises(errors.GrantEnded):
        services.unwrap(TARGET, lease.pk, identity)
    with pytest.raises(ValueError, match="wiped"):
        _ = opened[0].value
    lease.refresh_from_db()
    assert lease.opened == 0


@pytest.mark.django_db(transaction=True)
def test_when_a_revocation_returned_nothing_comes_out_any_more(grant: Make) -> None:
    identity, _ = backed_up()
    lease = grant()
    stop, after = threading.Event(), []

    def loop() -> int:
        count = 0
        while True:
            begun_after = stop.is_set()
            try:
                services.unwrap(TARGET, lease.pk, identity)
            except errors.GrantEnded:
                return count
            count += 1
            if begun_after:
                after.append(count)

    def revoke() -> int:
        while UnwrapGrant.objects.get().opened < 5:
            pass
        grants.revoke(SYSTEM, lease.pk, reason="stop")
        stop.set()
        return 0

    given = sum(int(str(each)) for each in at_once([loop, loop, loop, revoke]))
    assert after == []
    assert UnwrapGrant.objects.get().opened == given


def test_a_damaged_key_is_named(grant: Make) -> None:
    identity, _ = backed_up()
    lease = grant()
    DataKey.objects.filter(pk=identity).update(object="base/2")
    with pytest.raises(errors.Damaged, match="changed in the database"):
        services.unwrap(TARGET, lease.pk, identity)


def test_an_hsm_that_is_away_is_told_as_later(monkeypatch: pytest.MonkeyPatch, grant: Make) -> None:
    identity, _ = backed_up()
    lease = grant()

    def away(_: object) -> Key:
        raise HsmError("The HSM tok at 10.0.0.1 does not answer.")

    monkeypatch.setattr(keks, "open_kek", away)
    for call in (backed_up, lambda: services.unwrap(TARGET, lease.pk, identity)):
        with pytest.raises(errors.Unavailable) as refused:
            call()
        assert "10.0.0.1" not in str(refused.value)


def test_nothing_secret_is_written_down(grant: Make, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    identity, key = backed_up()
    lease = grant()
    services.unwrap(TARGET, lease.pk, identity)
    with pytest.raises(errors.NotFound):
        services.unwrap(ELSEWHERE, lease.pk, identity)
    written = caplog.text + "".join(str((event.before, event.after)) for event in AuditEvent.objects.all())
    for form in (key.hex(), base64.b64encode(key).decode(), repr(key)):
        assert form not in written


# Publishing


@pytest.fixture
def folders(settings: Settings, tmp_path: object) -> None:
    settings.HEARTH = {**settings.HEARTH, "HEARTH_KEY_BUNDLES": [f"here:{tmp_path}"]}


@pytest.mark.usefixtures("folders")
def test_an_agent_has_its_keys_published() -> None:
    identity, _ = backed_up()
    services.publish_keys(SOURCE, [identity, identity])
    assert BundleFile.objects.get().verified is not None


@pytest.mark.usefixtures("folders")
def test_an_agent_publishes_its_own_alone() -> None:
    identity, _ = backed_up()
    foreign, _ = backed_up(FOREIGN)
    column = deks.new_data_key(Context(ACME, "column:x.y", SOURCE, "x")).id
    for ids in ([foreign], [identity, foreign], [uuid.uuid4()], [column]):
        with pytest.raises(errors.NotFound):
            services.publish_keys(SOURCE, ids)
    for number in (0, services.MOST + 1):
        with pytest.raises(errors.Malformed):
            services.publish_keys(SOURCE, [uuid.uuid4() for _ in range(number)])


def test_places_that_fail_are_told_as_later(monkeypatch: pytest.MonkeyPatch) -> None:
    identity, _ = backed_up()

    def fail(*_: object, **__: object) -> None:
        raise NotPublished("/mnt/keys is full")

    monkeypatch.setattr(publish, "publish", fail)
    with pytest.raises(errors.Unavailable) as refused:
        services.publish_keys(SOURCE, [identity])
    assert "/mnt" not in str(refused.value)


def test_slow_places_do_not_take_all_the_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    identity, _ = backed_up()
    monkeypatch.setattr(services, "_publishing", threading.BoundedSemaphore(1))
    monkeypatch.setattr(services, "PUBLISH_WAIT", 0.01)
    with services._publishing, pytest.raises(errors.Unavailable, match="slow"):
        services.publish_keys(SOURCE, [identity])


# An agent that loops


def test_an_agent_that_loops_is_stopped_and_disturbs_nobody(monkeypatch: pytest.MonkeyPatch, grant: Make) -> None:
    monkeypatch.setattr(allowances, "FRESH", (Bucket("fresh", 3, 0.5), Bucket("fresh-long", 4, 0.001)))
    for _ in range(3):
        backed_up()
    with pytest.raises(errors.TooMany, match="in 2 seconds") as refused:
        backed_up()
    assert refused.value.wait == 2
    assert DataKey.objects.count() == 3
    backed_up(TARGET)
    later(4)
    backed_up()
    with pytest.raises(errors.TooMany) as refused:
        backed_up()
    assert refused.value.wait == 1000


@pytest.mark.usefixtures("folders")
def test_an_agent_that_publishes_again_and_again_fills_no_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allowances, "PUBLISHED", (Bucket("published", 5, 0.5),))
    ids = [backed_up()[0] for _ in range(3)]
    services.publish_keys(SOURCE, ids)
    with pytest.raises(errors.TooMany) as refused:
        services.publish_keys(SOURCE, ids)
    assert refused.value.wait == 6
    services.publish_keys(SOURCE, ids[:2])
    assert BundleFile.objects.count() == 2


def test_guesses_are_counted_too(monkeypatch: pytest.MonkeyPatch, grant: Make) -> None:
    monkeypatch.setattr(allowances, "UNWRAP", (Bucket("unwrap", 2, 1),))
    for _ in range(2):
        with pytest.raises(errors.NotFound):
            services.unwrap(ELSEWHERE, uuid.uuid4(), uuid.uuid4())
    with pytest.raises(errors.TooMany):
        services.unwrap(ELSEWHERE, uuid.uuid4(), uuid.uuid4())


def test_a_bucket_fills_again_and_never_over() -> None:
    bucket = Bucket("x", 2, 1)
    bucket.take("a")
    later(3600)
    bucket.take("a")
    bucket.take("a")
    with pytest.raises(errors.TooMany):
        bucket.take("a")


def test_full_buckets_are_forgotten() -> None:
    Bucket("x", 2, 1).take("a")
    assert allowances.forget_old() == 0
    later(3 * 86_400)
    assert allowances.forget_old() == 1
    assert all(bucket.burst / bucket.rate < 2 * 86_400 for bucket in (*allowances.FRESH, *allowances.PUBLISHED))


@pytest.mark.django_db(transaction=True)
def test_many_at_once_get_no_more_than_there_is() -> None:
    bucket = Bucket("x", 5, 0.0001)

    def take() -> int:
        try:
            bucket.take("a")
        except errors.TooMany:
            return 0
        return 1

    assert sum(int(str(each)) for each in at_once([take] * 12)) == 5


def later(seconds: float) -> None:
    """Let the buckets believe that time has passed."""
    with connection.cursor() as cursor:
        cursor.execute("update security_allowance set at = at - make_interval(secs => %s)", [seconds])
