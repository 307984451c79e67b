"""Sealed columns: bound to their row, opened late, never in plain in the database, resealed when it is time."""

from __future__ import annotations

import base64
import logging
import re
import uuid
from datetime import timedelta

import pytest
from allauth.mfa.adapter import get_adapter
from allauth.mfa.models import Authenticator
from django.apps import apps
from django.core import serializers
from django.db import connection, models, transaction
from django.test.utils import CaptureQueriesContext, isolate_apps
from django.utils import timezone

from accounts.models import User
from accounts.sessions import SessionStore
from audit.models import AuditEvent
from audit.services import SYSTEM
from notifications.models import Mail
from provisioning import secrets
from provisioning.models import ServerSecret
from security import reseal
from security.errors import UnsealError
from security.fields import Sealed, SealedTextField
from security.keyring import keks, report, roots
from security.models import PLATFORM, DataKey, RootKey
from security.sealing import seal
from tenants.models import Organisation, Server
from tests.security.old import seal_old

pytestmark = pytest.mark.django_db
LINK = "Your link: https://example.org/?key=one-time"
# Names that look like secrets, and why these columns hold none. Whatever else looks like one must be sealed.
LOOKS = re.compile(r"secret|passw|token|key|macaroon|credential|totp|otp|kubeconfig|webhook|pin$|private|signing|data$")
PLAIN = {
    "provisioning.Cluster.s3_access_key": "the name of the key pair, sent with each request; the secret half is sealed",
    "account.EmailConfirmation.key": "allauth signs its links; it writes no row here",
    "accounts.StaffLink.token_hash": "a hash",
    "accounts.User.password": "a hash",
    "mfa.Authenticator.data": "its secrets are sealed by allauth's adapter",
    "backups.RestorePoint.signing_key_id": "public: the key's name",
    "backups.Store.access_key": "the name of the key pair, sent with each request; the secret half is sealed",
    "backups.Store.agent_access_key": "the name of the key pair, sent with each request; the secret half is sealed",
    "provisioning.ServerStatus.signing_key_id": "public: the key's name",
    "sessions.Session.session_data": "sealed by accounts.sessions",
    "sessions.Session.session_key": "the name by which a session is looked up",
    "tenants.Domain.token": "public: it is published in DNS",
}


def raw(row: models.Model, column: str) -> bytes:
    found: bytes = type(row)._default_manager.filter(pk=row.pk).values_list(column, flat=True)[0]
    return bytes(found)


def write(row: models.Model, column: str, value: bytes) -> None:
    type(row)._default_manager.filter(pk=row.pk).update(**{column: Sealed(value)})


@pytest.fixture
def mail() -> Mail:
    return Mail.objects.create(recipient="alice@example.org", subject="Hello", text=LINK)


@pytest.fixture
def secret() -> ServerSecret:
    organisation = Organisation.objects.create(name="Alice & Co", slug="alice-co")
    server = Server.objects.create(
        organisation=organisation, name="berry", server_name="berry.hearth.localhost", region="local", users=10
    )
    return ServerSecret.objects.create(server=server, name="signing_key", value="ed25519 a_1 seed")


def test_it_works(mail: Mail) -> None:
    sealed = raw(mail, "text")
    assert sealed[:1] == b"\x02"
    assert LINK.encode() not in sealed
    assert mail.text == LINK
    mail.refresh_from_db()
    assert mail.text == LINK
    assert Mail.objects.defer("text").get().text == LINK


def test_a_servers_secret_is_sealed_by_its_organisations_key(secret: ServerSecret) -> None:
    identity = uuid.UUID(bytes=raw(secret, "value")[1:17])
    assert DataKey.objects.get(pk=identity).owner == secret.server.organisation_id
    assert ServerSecret.objects.get().value == "ed25519 a_1 seed"


def test_a_value_in_another_row_does_not_open(secret: ServerSecret) -> None:
    other = ServerSecret.objects.create(server=secret.server, name="admin_password", value="x")
    write(other, "value", raw(secret, "value"))
    with pytest.raises(UnsealError, match="admin_password"):
        ServerSecret.objects.get(pk=other.pk).value  # noqa: B018 (reading it is the test)
    assert ServerSecret.objects.get(pk=secret.pk).value == "ed25519 a_1 seed"


def test_a_new_password_keeps_its_text_under_its_new_name(secret: ServerSecret) -> None:
    ServerSecret.objects.create(server=secret.server, name=secrets.ADMIN_PASSWORD, value="old")
    ServerSecret.objects.create(server=secret.server, name=secrets.NEXT_PASSWORD, value="new")
    secrets.promote_password(secret.server)
    found = {each.name: each.value for each in ServerSecret.objects.all()}
    assert found == {"signing_key": "ed25519 a_1 seed", secrets.ADMIN_PASSWORD: "new"}
    secrets.promote_password(secret.server)


def test_listing_opens_nothing_and_saving_keeps_it(mail: Mail) -> None:
    before = raw(mail, "text")
    row = Mail.objects.get()
    assert repr(row.__dict__["text"]) == str(row.__dict__["text"]) == "<sealed>"
    assert repr(Mail.objects.values_list("text", flat=True)[0]) == "<sealed>"
    row.save()
    assert raw(mail, "text") == before
    row.text = "Another"
    row.save()
    assert Mail.objects.get().text == "Another"


def test_a_secret_of_several_servers_costs_no_query_each(secret: ServerSecret) -> None:
    for number in range(5):
        ServerSecret.objects.create(server=secret.server, name=f"n{number}", value="x")
    keks.cache.clear()
    with CaptureQueriesContext(
        connection,
    ) as queries:
        values = [row.value for row in ServerSecret.objects.select_related("server")]
    assert len(values) == 6
    assert len(queries) <= 2


def test_what_cannot_be_bound_is_refused(mail: Mail) -> None:
    with pytest.raises(TypeError, match="save the row"), transaction.atomic():
        Mail.objects.update(text="plain")
    with pytest.raises(TypeError, match="save the row"), transaction.atomic():
        list(Mail.objects.filter(text="plain"))
    assert Mail.objects.get().text == LINK
    Mail.objects.update(text="")
    assert Mail.objects.get().text == ""


@isolate_apps("security")
def test_nothing_is_an_answer_too_and_a_number_is_no_row() -> None:
    class Note(models.Model):
        id = models.UUIDField(primary_key=True, default=uuid.uuid4)
        text = SealedTextField(null=True)

        class Meta:
            app_label = "security"

    class Counted(models.Model):
        text = SealedTextField()

        class Meta:
            app_label = "security"

    with connection.schema_editor() as editor:
        editor.create_model(Note)
    Note._default_manager.create()
    assert Note._default_manager.get().text is None
    assert not Note.check()
    assert [fault.id for fault in Counted._meta.get_field("text").check()] == ["security.E001"]
    assert isinstance(Note.text, type(Mail.text))


def test_a_form_takes_it_as_it_is(mail: Mail) -> None:
    assert mail._meta.get_field("text").clean(LINK, mail) == LINK


def test_a_secret_is_never_serialised(mail: Mail) -> None:
    with pytest.raises(TypeError, match="never serialised"):
        serializers.serialize("json", [mail])


# Saves that would leave a value behind which nobody can open


def test_a_row_gets_another_name_when_its_value_was_read(secret: ServerSecret) -> None:
    row = ServerSecret.objects.get()
    assert row.value
    row.name = "another"
    row.save()
    assert ServerSecret.objects.get(name="another").value == "ed25519 a_1 seed"


@pytest.mark.parametrize("saved", [None, ["name"], ["name", "value"]])
def test_a_row_gets_no_other_name_behind_its_value(secret: ServerSecret, saved: list[str] | None) -> None:
    row = ServerSecret.objects.get()
    row.name = "another"
    with pytest.raises(TypeError, match=r"bound to server and name.*Nothing was written"), transaction.atomic():
        row.save(update_fields=saved)
    assert ServerSecret.objects.get().value == "ed25519 a_1 seed"


def test_a_name_that_is_not_saved_binds_nothing(secret: ServerSecret) -> None:
    secret.name, secret.value = "another", "other"
    with pytest.raises(TypeError, match="Nothing was written"), transaction.atomic():
        secret.save(update_fields=["value"])
    assert ServerSecret.objects.get().value == "ed25519 a_1 seed"
    secret.save(update_fields=["name", "value"])
    assert ServerSecret.objects.get(name="another").value == "other"


def test_a_value_that_was_not_loaded_is_not_wiped(secret: ServerSecret, mail: Mail) -> None:
    row = ServerSecret.objects.defer("value").get()
    with pytest.raises(TypeError, match="would wipe it"), transaction.atomic():
        row.save(update_fields=["value"])
    row.save()
    row.name = "another"
    with pytest.raises(TypeError, match="Nothing was written"), transaction.atomic():
        row.save()
    assert ServerSecret.objects.get().value == "ed25519 a_1 seed"
    light = Mail.objects.defer("text").get()
    light.subject = "New"
    light.save()
    assert (Mail.objects.get().subject, Mail.objects.get().text) == ("New", LINK)


def test_a_copy_of_a_row_has_a_value_of_its_own(mail: Mail) -> None:
    row = Mail.objects.get()
    row.pk, row._state.adding = uuid.uuid4(), True
    with pytest.raises(TypeError, match="bound to its row's key"), transaction.atomic():
        row.save()
    row = Mail.objects.get()
    assert row.text == LINK
    row.pk, row._state.adding = uuid.uuid4(), True
    row.save()
    assert {each.text for each in Mail.objects.all()} == {LINK}
    raw_copy = Mail(pk=mail.pk, recipient="x@example.org", text=Sealed(raw(mail, "text")))
    Mail.objects.all().delete()
    raw_copy.save(force_insert=True)
    assert Mail.objects.get().text == LINK


def test_old_values_open_and_are_sealed_anew(mail: Mail, secret: ServerSecret) -> None:
    write(mail, "text", seal_old(b"old mail", "notifications.mail.text"))
    write(secret, "value", seal_old(b"old key", "provisioning.serversecret.value"))
    assert (Mail.objects.get().text, ServerSecret.objects.get().value) == ("old mail", "old key")
    root = RootKey.objects.get()
    assert reseal.needs_key_file(root) == reseal.waiting() == 2
    assert reseal.reseal() == (2, [])
    assert (raw(mail, "text")[:1], raw(secret, "value")[:1]) == (b"\x02", b"\x02")
    assert (Mail.objects.get().text, ServerSecret.objects.get().value) == ("old mail", "old key")
    assert reseal.waiting() == 0
    assert reseal.reseal() == (0, [])


def test_the_key_file_stays_while_old_values_need_it(mail: Mail, monkeypatch: pytest.MonkeyPatch) -> None:
    write(mail, "text", seal_old(b"old mail", "notifications.mail.text"))
    first = RootKey.objects.get()
    roots.rotate_root(SYSTEM)
    roots.move_keks(SYSTEM)
    first.refresh_from_db()
    assert first.state == "readable"
    reseal.reseal()
    roots.move_keks(SYSTEM)
    first.refresh_from_db()
    assert first.state == "retired"


def test_no_key_file_at_all(mail: Mail, settings: object) -> None:
    root = RootKey.objects.get()
    settings.HEARTH = {**settings.HEARTH, "HEARTH_KEY_FILE": "/nowhere/root.key"}  # type: ignore[attr-defined]
    assert reseal.needs_key_file(root) == 0


def test_values_under_a_compromised_key_are_sealed_anew(secret: ServerSecret) -> None:
    before = raw(secret, "value")
    keks.rotate(SYSTEM, secret.server.organisation_id, compromised=True)
    assert reseal.waiting() == 1
    assert reseal.reseal() == (1, [])
    assert raw(secret, "value")[1:17] != before[1:17]
    assert ServerSecret.objects.get().value == "ed25519 a_1 seed"


def test_a_damaged_value_is_named_and_stops_nobody(
    mail: Mail, secret: ServerSecret, caplog: pytest.LogCaptureFixture
) -> None:
    write(mail, "text", b"\x01nonsense")
    write(secret, "value", seal_old(b"old key", "provisioning.serversecret.value"))
    with caplog.at_level(logging.WARNING):
        done, faults = reseal.reseal()
    assert done == 1
    assert str(mail.pk) in faults[0]
    assert raw(mail, "text") == b"\x01nonsense"


def test_a_row_that_is_gone_meanwhile(mail: Mail) -> None:
    (found,) = [pair for pair in reseal.columns_of_all() if pair[0] is Mail]
    assert not reseal._one(*found, uuid.uuid4())


def test_second_factors_are_sealed_anew(alice: User) -> None:
    secret = base64.b64encode(seal_old(b"JBSWY3DPEHPK3PXP", "accounts.totp")).decode()
    Authenticator.objects.filter(user=alice).delete()
    totp = Authenticator.objects.create(user=alice, type="totp", data={"secret": secret})
    codes = Authenticator.objects.create(user=alice, type="recovery_codes", data={"seed": secret, "used_mask": 0})
    Authenticator.objects.create(user=alice, type="webauthn", data={})
    assert reseal.waiting() == 2
    assert reseal.reseal() == (2, [])
    for row, part in ((totp, "secret"), (codes, "seed")):
        row.refresh_from_db()
        assert base64.b64decode(row.data[part])[:1] == b"\x02"
        assert get_adapter().decrypt(row.data[part]) == "JBSWY3DPEHPK3PXP"
    assert reseal.waiting() == 0


def test_a_second_factor_that_cannot_be_opened_stops_nobody(alice: User) -> None:
    Authenticator.objects.filter(user=alice).delete()
    lost = base64.b64encode(b"\x01" + bytes(60)).decode()
    damaged = Authenticator.objects.create(user=alice, type="totp", data={"secret": lost})
    good = base64.b64encode(seal_old(b"JBSWY3DPEHPK3PXP", "accounts.totp")).decode()
    Authenticator.objects.create(user=alice, type="recovery_codes", data={"seed": good, "used_mask": 0})
    done, faults = reseal.reseal()
    assert done == 1
    assert f"second factor {damaged.pk} was left" in faults[0]
    damaged.refresh_from_db()
    assert damaged.data == {"secret": lost}


def test_marked_keys_go_when_nothing_uses_them(secret: ServerSecret, mail: Mail, alice: User) -> None:
    session = SessionStore()
    session["a"] = "b"
    session.save()
    seal(b"x", "somewhere.else")
    for owner in (secret.server.organisation_id, PLATFORM):
        keks.rotate(SYSTEM, owner, compromised=True)
    marked = set(DataKey.objects.filter(reencrypt__isnull=False).values_list("purpose", flat=True))
    assert len(marked) == 5
    DataKey.objects.update(reencrypt=timezone.now() - timedelta(days=2))
    assert reseal.remove_unused() == 0, "everything still uses them"
    assert reseal.waiting() == 4
    assert reseal.reseal() == (4, [])
    assert reseal.remove_unused() == 4
    left = DataKey.objects.filter(reencrypt__isnull=False)
    assert [row.purpose for row in left] == ["purpose:somewhere.else"], "nobody looks after its values"
    assert (ServerSecret.objects.get().value, Mail.objects.get().text) == ("ed25519 a_1 seed", LINK)
    assert SessionStore(session.session_key)["a"] == "b"
    assert AuditEvent.objects.filter(verb="data_key.remove").count() == 4


def test_a_key_marked_lately_stays_for_whoever_still_writes(mail: Mail) -> None:
    Mail.objects.all().delete()
    keks.rotate(SYSTEM, PLATFORM, compromised=True)
    assert reseal.remove_unused() == 0
    DataKey.objects.update(reencrypt=timezone.now() - timedelta(days=2))
    (old,) = DataKey.objects.filter(reencrypt__isnull=False)
    assert reseal._remove(old) == 1
    assert reseal._remove(old) == 0


def test_no_secret_looking_column_is_in_plain() -> None:
    kinds = (models.CharField, models.TextField, models.BinaryField, models.JSONField)
    columns = {
        f"{model._meta.label}.{field.name}": field
        for model in apps.get_models()
        for field in model._meta.local_fields
        if isinstance(field, kinds) and LOOKS.search(field.name)
    }
    plain = {name for name, field in columns.items() if not isinstance(field, SealedTextField)}
    assert plain == set(PLAIN), "seal the column, or say above why it holds no secret"


def test_the_report_and_its_pages_hold_no_secret(secret: ServerSecret) -> None:
    key = keks.open_kek(keks.ensure_kek(secret.server.organisation_id))
    shown = repr(report.report()) + repr(key) + repr(keks.cache) + repr(Sealed(b"x"))
    assert key.value.hex() not in shown
    assert str(bytes(key.value)) not in shown
