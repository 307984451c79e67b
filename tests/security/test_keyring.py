"""The keyring: keys are made, opened, rotated and destroyed; nothing opens as something else."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable
from datetime import timedelta

import pytest
from django.db import IntegrityError, connection, transaction
from django.utils import timezone
from pytest_django import Settings

from audit.models import AuditEvent
from audit.services import SYSTEM
from security.errors import KeyGone, KeyInUse, SecurityError, WrongKey
from security.keyring import deks, keks, roots
from security.keyring.cache import KeyCache
from security.keyring.deks import Context
from security.keyring.seams import seams
from security.models import PLATFORM, DataKey, KeyEncryptionKey, RootKey
from security.secret import Key
from tests.together import at_once

State = KeyEncryptionKey.State
pytestmark = pytest.mark.django_db
OWNER = uuid.uuid4()


def context(owner: uuid.UUID = OWNER, name: str = "media/1") -> Context:
    return Context(owner, "backup.media", uuid.UUID(int=7), name)


def version(number: int, owner: uuid.UUID = OWNER) -> KeyEncryptionKey:
    return KeyEncryptionKey.objects.get(owner=owner, version=number)


def test_it_works() -> None:
    identity, key = deks.new_data_key(context())
    assert deks.open_data_key(identity, context()).value == key.value
    keks.cache.clear()
    assert deks.open_data_key(identity, context()).value == key.value
    row = DataKey.objects.get(pk=identity)
    assert bytes(key.value) not in bytes(row.wrapped) + bytes(row.kek.wrapped)
    assert (row.kek.version, row.kek.state, row.kek.root.state) == (1, "active", "active")


def test_every_object_has_a_key_of_its_own() -> None:
    one, two = deks.new_data_key(context()), deks.new_data_key(context())
    assert one.id != two.id
    assert one.key.value != two.key.value
    assert KeyEncryptionKey.objects.count() == 1


@pytest.mark.parametrize(
    "other",
    [
        Context(uuid.UUID(int=9), "backup.media", uuid.UUID(int=7), "media/1"),
        Context(OWNER, "backup.wal", uuid.UUID(int=7), "media/1"),
        Context(OWNER, "backup.media", uuid.UUID(int=8), "media/1"),
        Context(OWNER, "backup.media", None, "media/1"),
        Context(OWNER, "backup.media", uuid.UUID(int=7), "media/2"),
    ],
)
def test_a_data_key_opens_for_its_own_object_alone(other: Context) -> None:
    identity, _ = deks.new_data_key(context())
    with pytest.raises(WrongKey, match=str(identity)):
        deks.open_data_key(identity, other)
    # Also where somebody changes the row so that it says so.
    DataKey.objects.filter(pk=identity).update(
        owner=other.owner, purpose=other.purpose, server=other.server, object=other.object
    )
    with pytest.raises(WrongKey, match="changed in the database"):
        deks.open_data_key(identity, other)


def test_a_wrapped_key_does_not_open_in_another_row() -> None:
    one, two = deks.new_data_key(context()), deks.new_data_key(context())
    stolen = DataKey.objects.get(pk=one.id).wrapped
    DataKey.objects.filter(pk=two.id).update(wrapped=stolen)
    with pytest.raises(WrongKey, match=str(two.id)):
        deks.open_data_key(two.id, context())


def test_a_kek_does_not_open_in_another_row() -> None:
    keks.ensure_kek(OWNER)
    keks.rotate(SYSTEM, OWNER)
    KeyEncryptionKey.objects.filter(version=2).update(wrapped=version(1).wrapped)
    keks.cache.clear()
    with pytest.raises(WrongKey):
        keks.open_kek(version(2))


def test_an_unknown_data_key() -> None:
    with pytest.raises(KeyGone, match="not in the keyring"):
        deks.open_data_key(uuid.uuid4(), context())


def test_rotation_keeps_everything_readable() -> None:
    old = deks.new_data_key(context())
    keks.rotate(SYSTEM, OWNER)
    new = deks.new_data_key(context())
    assert (version(1).state, version(2).state) == (State.DECRYPT_ONLY, State.ACTIVE)
    assert DataKey.objects.get(pk=new.id).kek == version(2)
    for each in (old, new):
        assert deks.open_data_key(each.id, context()).value == each.key.value
    event = AuditEvent.objects.get(verb="kek.rotate")
    assert (event.organisation_id, event.before, event.after["version"]) == (OWNER, {"version": 1}, 2)


def test_the_platform_is_no_organisation_in_the_trail() -> None:
    keks.ensure_kek(PLATFORM)
    event = AuditEvent.objects.get(verb="kek.create")
    assert (event.organisation_id, event.object_label) == (None, "version 1 of the platform")


def test_rotation_by_schedule_never_waits_past_90_days(settings: Settings) -> None:
    settings.HEARTH = {**settings.HEARTH, "HEARTH_KEY_ROTATION_DAYS": 1000}
    kek, now = keks.ensure_kek(OWNER), timezone.now()
    keks.ensure_kek(PLATFORM)
    assert timedelta(days=89) < kek.rotate_after - now <= timedelta(days=90, seconds=5)
    assert keks.rotate_due() == 0
    KeyEncryptionKey.objects.filter(pk=kek.pk).update(rotate_after=now)
    assert keks.rotate_due() == 1
    assert keks.rotate_due() == 0
    assert KeyEncryptionKey.objects.filter(owner=OWNER).count() == 2


def test_one_failed_rotation_does_not_stop_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    owners = [uuid.uuid4() for _ in range(3)]
    for owner in owners:
        keks.ensure_kek(owner)
    KeyEncryptionKey.objects.update(rotate_after=timezone.now())
    real = keks._replace

    def fail(actor: object, old: KeyEncryptionKey, *, compromised: bool) -> KeyEncryptionKey:
        if old.owner == owners[1]:
            raise SecurityError("no")
        return real(actor, old, compromised=compromised)

    monkeypatch.setattr(keks, "_replace", fail)
    with pytest.raises(SecurityError, match="no"):
        keks.rotate_due()
    assert [version(2, owner).state for owner in (owners[0], owners[2])] == ["active"] * 2
    assert version(1, owners[1]).state == State.ACTIVE


def test_a_compromise_marks_every_data_key_and_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[uuid.UUID, int]] = []
    monkeypatch.setattr(seams, "reencrypt", [lambda owner, keys: told.append((owner, len(keys)))])
    for _ in range(3):
        deks.new_data_key(context())
    others = deks.new_data_key(context(uuid.uuid4()))
    keks.rotate(SYSTEM, OWNER, compromised=True)
    assert version(1).compromised is not None
    assert DataKey.objects.filter(reencrypt__isnull=False).count() == 3
    assert DataKey.objects.get(pk=others.id).reencrypt is None
    assert told == [(OWNER, 3)]
    assert DataKey.objects.get(pk=deks.new_data_key(context()).id).reencrypt is None


def test_a_shared_key_is_one_until_a_compromise() -> None:
    column = Context(OWNER, "column:x.y.z")
    first = deks.shared_data_key(column)
    assert deks.shared_data_key(column).id == first.id
    deks.cache.clear()
    assert deks.shared_data_key(column).key.value == first.key.value
    keks.rotate(SYSTEM, OWNER, compromised=True)
    second = deks.shared_data_key(column)
    assert second.id != first.id
    assert deks.open_data_key(first.id, column).value == first.key.value


def test_a_version_is_destroyed_only_when_nothing_needs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    identity, _ = deks.new_data_key(context())
    with pytest.raises(KeyInUse, match="active"):
        keks.destroy(SYSTEM, version(1))
    keks.rotate(SYSTEM, OWNER)
    with pytest.raises(KeyInUse, match="1 data keys"):
        keks.destroy(SYSTEM, version(1))
    DataKey.objects.filter(pk=identity).delete()
    monkeypatch.setattr(seams, "wrapped_elsewhere", [lambda *_: 2])
    with pytest.raises(KeyInUse, match="2 data keys"):
        keks.destroy(SYSTEM, version(1))
    monkeypatch.setattr(seams, "wrapped_elsewhere", [])
    keks.destroy(SYSTEM, version(1))
    keks.destroy(SYSTEM, version(1))
    assert (version(1).state, bytes(version(1).wrapped)) == ("destroyed", b"")
    assert AuditEvent.objects.filter(verb="kek.destroy").count() == 1
    with pytest.raises(KeyGone, match="destroyed"):
        keks.open_kek(version(1))


def test_the_database_itself_refuses_to_lose_a_key() -> None:
    identity, _ = deks.new_data_key(context())
    kek = version(1)
    refused: list[Callable[[], object]] = [
        lambda: KeyEncryptionKey.objects.filter(pk=kek.pk).update(state="destroyed"),
        lambda: KeyEncryptionKey.objects.filter(pk=kek.pk).update(state="retired"),
        lambda: KeyEncryptionKey.objects.filter(pk=kek.pk)._raw_delete("default"),
        lambda: DataKey.objects.filter(pk=identity).update(kek=keks.ensure_kek(uuid.uuid4())),
    ]
    keks.rotate(SYSTEM, OWNER)
    for change in refused:
        with pytest.raises(IntegrityError), transaction.atomic():
            change()
    DataKey.objects.filter(pk=identity).delete()
    keks.destroy(SYSTEM, kek)
    late_changes: list[Callable[[], object]] = [
        lambda: DataKey.objects.create(kek=kek, wrapped=b"", owner=OWNER, purpose="late"),
        lambda: KeyEncryptionKey.objects.filter(pk=kek.pk).update(state="active"),
    ]
    for late in late_changes:
        with pytest.raises(IntegrityError), transaction.atomic():
            late()


def test_a_key_under_a_retired_root_is_refused() -> None:
    keks.ensure_kek(OWNER)
    root = RootKey.objects.get()
    with pytest.raises(KeyInUse, match="active"):
        roots.retire(SYSTEM, root)
    RootKey.objects.filter(pk=root.pk).update(state="readable")
    with pytest.raises(KeyInUse, match="1 others"):
        roots.retire(SYSTEM, root)
    RootKey.objects.filter(pk=root.pk).update(state="retired")
    with pytest.raises(IntegrityError), transaction.atomic():
        KeyEncryptionKey.objects.create(
            owner=uuid.uuid4(), version=1, root=root, wrapped=b"", rotate_after=timezone.now()
        )


def test_keys_in_memory_are_few_short_lived_and_wiped() -> None:
    cache = KeyCache(seconds=300, most=2)
    names, keys = [uuid.uuid4() for _ in range(3)], [Key.fresh() for _ in range(3)]
    for name, key in zip(names, keys, strict=True):
        cache.put(name, key)
    held = next(iter(cache._entries.values())).key
    memory = held.value
    assert len(cache) == 2
    assert cache.get(names[0]) is None
    copy = cache.get(names[1])
    assert copy is not None
    cache.forget(names[1])
    assert bytes(memory) == bytes(32)
    assert copy.value == keys[1].value
    assert cache.get(names[2], "something else") is None
    assert keys[2].value.hex() not in repr(cache)
    cache.clear()
    assert len(cache) == 0
    short = KeyCache(seconds=0)
    short.put(names[0], keys[0])
    assert short.get(names[0]) is None


@pytest.mark.django_db(transaction=True)
def test_two_that_make_the_first_key_at_once_agree() -> None:
    owner, column = uuid.uuid4(), Context(PLATFORM, "column:a.b.c")
    seen = at_once([lambda: (keks.ensure_kek(owner).pk, deks.shared_data_key(column).id)] * 4, seconds=60)
    assert len(seen) == 4
    assert len(set(seen)) == 1
    assert RootKey.objects.count() == 1


def elsewhere(do: Callable[[], object]) -> None:
    """Do it in another process's place: another connection, committed."""

    def work() -> None:
        try:
            do()
        finally:
            connection.close()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(60)


@pytest.mark.django_db(transaction=True)
def test_whoever_comes_second_takes_what_the_first_made(monkeypatch: pytest.MonkeyPatch) -> None:
    column, owner = Context(PLATFORM, "column:a.b.c"), uuid.uuid4()
    real_activate, real_new, real_make = roots._activate, keks._new, deks._make

    def activate(actor: object, name: str) -> RootKey:
        monkeypatch.setattr(roots, "_activate", real_activate)
        elsewhere(lambda: roots.rotate_root(SYSTEM))
        return real_activate(actor, name)

    def new(*arguments: object) -> KeyEncryptionKey:
        monkeypatch.setattr(keks, "_new", real_new)
        elsewhere(lambda: keks.ensure_kek(owner))
        return real_new(*arguments)  # type: ignore[arg-type]  # passed on as they came

    def make(context: Context, *, shared: bool) -> deks.Opened | None:
        monkeypatch.setattr(deks, "_make", real_make)
        elsewhere(lambda: deks.shared_data_key(column))
        return real_make(context, shared=shared)

    monkeypatch.setattr(roots, "_activate", activate)
    assert roots.ensure_root() == RootKey.objects.get(state="active")
    monkeypatch.setattr(keks, "_new", new)
    assert keks.ensure_kek(owner) == KeyEncryptionKey.objects.get(owner=owner)
    monkeypatch.setattr(deks, "_make", make)
    assert deks.shared_data_key(column).id == DataKey.objects.get().pk
    assert str(DataKey.objects.get()) == f"data key {DataKey.objects.get().pk} (column:a.b.c)"


@pytest.mark.django_db(transaction=True)
def test_two_that_rotate_by_hand_make_two_versions() -> None:
    keks.ensure_kek(OWNER)

    at_once([lambda: keks.rotate(SYSTEM, OWNER)] * 2, seconds=60)
    assert [version(number).state for number in (1, 2, 3)] == ["decrypt-only", "decrypt-only", "active"]


@pytest.mark.django_db(transaction=True)
def test_two_that_rotate_what_is_due_make_one_version() -> None:
    keks.ensure_kek(OWNER)
    KeyEncryptionKey.objects.update(rotate_after=timezone.now())
    counts = at_once([keks.rotate_due] * 2, seconds=60)
    assert {*counts} == {0, 1}
    assert version(2).state == State.ACTIVE


@pytest.mark.django_db
def test_a_data_key_made_during_a_compromise_is_marked_too(monkeypatch: pytest.MonkeyPatch) -> None:
    owner = uuid.uuid4()
    old = keks.ensure_kek(owner)
    keks.rotate(SYSTEM, owner, compromised=True)
    monkeypatch.setattr(keks, "ensure_kek", lambda _: old)  # looked just before the rotation was there
    late = deks.new_data_key(Context(owner, "backup.wal"))
    assert DataKey.objects.get(pk=late.id).reencrypt is not None
