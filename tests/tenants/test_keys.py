"""What an organisation sees of its keys, rotation by an owner, and erasure by staff."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from accounts.models import User
from audit.models import AuditEvent
from audit.services import SYSTEM
from security.errors import HsmError
from security.keyring import deks, erasure, keks, report, rewrap, roots
from security.keyring.deks import Context
from security.keyring.seams import seams
from security.models import DataKey, Erasure, KeyEncryptionKey, Rewrap
from tenants import encryption, services
from tenants.errors import Refused
from tenants.models import Organisation, Plan, Server
from tests.cast import make_user
from tests.tenants.test_views import text_of, url
from tests.together import at_once

pytestmark = pytest.mark.django_db
SignIn = Callable[[User], Client]
MakeServer = Callable[[str], Server]


@pytest.fixture
def hers(alice: User, client_for: SignIn) -> Client:
    return client_for(alice)


@pytest.fixture
def staff(client_for: SignIn, db: None) -> Client:
    return client_for(make_user("sally@example.org", staff=True))


def page(client: Client, organisation: Organisation) -> str:
    return text_of(client.get(url("organisation_keys", organisation)))


def made_before(organisation: Organisation, **ago: float) -> None:
    """Let the organisation's keys be older."""
    created = timezone.now() - timedelta(**ago)
    KeyEncryptionKey.objects.filter(owner=organisation.pk).update(created=created)


def fill(organisation: Organisation) -> None:
    """Keys of the kinds that there are: a server's secrets, and backups."""
    deks.shared_data_key(Context(organisation.pk, "column:provisioning.serversecret.value"))
    for purpose in ("backup.base", "backup.wal", "backup.wal", "backup.media", "backup.config"):
        deks.new_data_key(Context(organisation.pk, purpose, uuid.uuid4()))


# The page


def test_it_works(hers: Client, acme: Organisation) -> None:
    fill(acme)
    made_before(acme, days=12)
    seen = page(hers, acme)
    kek = KeyEncryptionKey.objects.get(owner=acme.pk)
    assert "Version</dt><dd>1" in seen
    assert "12 days" in seen
    assert f"{kek.rotate_after:%-d %B %Y}" in seen
    assert "6 under your key" in seen
    found = [(kind.cipher, kind.keys) for kind in encryption.of(acme).kinds]
    assert found == [
        ("XChaCha20-Poly1305", 1),
        ("XChaCha20-Poly1305", 1),
        ("XChaCha20-Poly1305", 2),
        ("AES-256-GCM", 2),
    ]
    assert "Up to date" in seen
    assert "a file of its own" in seen
    assert str(kek.pk) not in seen
    assert kek.root_id not in seen


def test_before_the_first_server(hers: Client, acme: Organisation) -> None:
    assert "No key yet" in page(hers, acme)
    answer = hers.post(url("keys_rotate", acme), follow=True)
    assert "has no key yet" in text_of(answer)


def test_an_owner_rotates(hers: Client, acme: Organisation, alice: User) -> None:
    fill(acme)
    made_before(acme, hours=2)
    answer = hers.post(url("keys_rotate", acme), follow=True)
    seen = text_of(answer)
    assert "Version 2 is your key now" in seen
    assert "Version</dt><dd>2" in seen
    event = AuditEvent.objects.get(verb="kek.rotate")
    assert (event.organisation_id, event.actor_label, event.after["version"]) == (acme.pk, str(alice), 2)
    rewrap.open_runs()
    assert "0 of 6 data keys moved" in page(hers, acme)
    rewrap.drive(per_second=1e6)
    assert "moved" not in page(hers, acme).replace("moves your data keys", "")
    again = hers.post(url("keys_rotate", acme), follow=True)
    assert "less than an hour old. Nothing was changed" in text_of(again)
    assert KeyEncryptionKey.objects.filter(owner=acme.pk).count() == 2


def test_a_member_looks_and_does_not_rotate(acme: Organisation, bob: User, client_for: SignIn) -> None:
    fill(acme)
    his = client_for(bob)
    seen = page(his, acme)
    assert "Owners can rotate the key" in seen
    assert "Rotate now" not in seen
    assert his.post(url("keys_rotate", acme)).status_code == 403
    assert his.get(url("keys_rotate", acme)).status_code == 405


def test_a_stranger_learns_nothing(acme: Organisation, charlie: User, client_for: SignIn) -> None:
    fill(acme)
    his = client_for(charlie)
    for name, send in (("organisation_keys", his.get), ("keys_rotate", his.post)):
        theirs = send(url(name, acme))
        missing = send(url(name, acme).replace("/acme/", "/missing/"))
        assert theirs.status_code == missing.status_code == 404
        assert text_of(theirs) == text_of(missing)
    assert KeyEncryptionKey.objects.filter(owner=acme.pk).count() == 1


def test_one_organisations_page_shows_nothing_of_anothers(
    hers: Client, acme: Organisation, charlie: User, plans: dict[str, Plan]
) -> None:
    other = services.create_organisation(actor=charlie, name="Other", plan=plans["ember"])
    fill(acme)
    fill(other)
    Rewrap.objects.create(owner=other.pk, total=7)
    erasure.request(SYSTEM, other.pk)
    seen = page(hers, acme)
    assert "6 under your key" in seen
    assert "In progress" not in seen
    assert "erasure" not in seen


def test_a_root_key_that_does_not_answer(
    hers: Client, acme: Organisation, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fill(acme)
    made_before(acme, hours=2)

    def away(*_: object) -> bytes:
        raise HsmError("The HSM (module /opt/secret.so) does not answer")

    monkeypatch.setattr(roots, "wrap", away)
    seen = text_of(hers.post(url("keys_rotate", acme), follow=True))
    assert "does not answer. Nothing was changed" in seen
    assert "/opt/secret.so" not in seen
    assert "/opt/secret.so" in caplog.text
    assert KeyEncryptionKey.objects.filter(owner=acme.pk).count() == 1


def test_a_late_rotation_is_said(hers: Client, acme: Organisation) -> None:
    fill(acme)
    KeyEncryptionKey.objects.update(rotate_after=timezone.now() - timedelta(days=1), root_id=hsm_root())
    seen = page(hers, acme)
    assert "Rotation is late" in seen
    assert "hardware security module" in seen


def hsm_root() -> str:
    """A root key as a row says it that an HSM holds."""
    from security.models import RootKey  # noqa: PLC0415 (used by this helper alone)

    return RootKey.objects.create(id="hsm:0011", state="readable", rotate_after=timezone.now()).pk


def test_the_page_costs_the_same_with_many_keys(hers: Client, acme: Organisation) -> None:
    fill(acme)
    page(hers, acme)
    with CaptureQueriesContext(connection) as few:
        page(hers, acme)
    for _ in range(5):
        fill(acme)
        keks.rotate(SYSTEM, acme.pk)
    with CaptureQueriesContext(connection) as many:
        page(hers, acme)
    assert len(many) == len(few)


@pytest.mark.django_db(transaction=True)
def test_two_who_rotate_at_once_make_one_version(acme: Organisation, alice: User) -> None:
    fill(acme)
    made_before(acme, hours=2)
    outcomes = at_once([lambda: services.rotate_keys(actor=alice, organisation=acme)] * 3)
    assert len([each for each in outcomes if isinstance(each, Refused)]) == 2
    assert KeyEncryptionKey.objects.filter(owner=acme.pk).count() == 2


# Erasure


@pytest.fixture
def dates(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """When the final backup expires, and when the last copy of the keys does."""
    now = timezone.now()
    given = {"final": now + timedelta(days=30), "copies": now + timedelta(days=65)}
    monkeypatch.setattr(seams, "keep_keys_until", [lambda *_: given["final"], encryption.keep_keys_until])
    monkeypatch.setattr(seams, "copies_until", [lambda *_: given["copies"]])
    return given


def words(date: Any) -> str:
    return f"{date:%-d %B %Y}"


def test_the_page_tells_an_erasure_from_its_request_to_its_end(
    hers: Client, acme: Organisation, alice: User, dates: dict[str, Any]
) -> None:
    fill(acme)
    services.request_erasure(actor=alice, organisation=acme, confirm="acme")
    seen = page(hers, acme)
    assert f"They are destroyed on {words(dates['final'])}" in seen
    assert f"complete on <strong>{words(dates['copies'])}</strong>" in seen
    assert "copies of its database are kept for 35 days after that" in seen
    dates["final"] = timezone.now()
    Erasure.objects.update(destroy_after=timezone.now())
    erasure.advance()
    seen = page(hers, acme)
    assert "Your keys were destroyed on" in seen
    assert f"expires on <strong>{words(dates['copies'])}</strong>" in seen
    assert "Copies of Hearth's own database are kept for 35 days" in seen
    assert "Rotate now" not in seen
    assert "were erased" in text_of(hers.post(url("keys_rotate", acme), follow=True))
    dates["copies"] = timezone.now()
    Erasure.objects.update(complete_after=timezone.now())
    erasure.advance()
    assert "no copy of them is left anywhere" in page(hers, acme)


def test_staff_ask_for_an_erasure_and_take_it_back(
    staff: Client, acme: Organisation, dates: dict[str, Any], alice: User
) -> None:
    fill(acme)
    target = reverse("admin:tenants_organisation_changelist")
    chosen = {"action": "request_erasure", "_selected_action": str(acme.pk)}
    question = text_of(staff.post(target, chosen))
    assert words(dates["final"]) in question
    assert words(dates["copies"]) in question
    assert "kept for 35 days" in question
    assert not Erasure.objects.exists()
    wrong = staff.post(target, chosen | {"confirm": "acne"})
    assert "not the address of this organisation" in text_of(wrong)
    assert not Erasure.objects.exists()
    assert "going to be erased" in text_of(staff.post(target, chosen | {"confirm": " acme "}, follow=True))
    assert AuditEvent.objects.get(verb="keys.erase").actor_label == "sally@example.org"
    one = text_of(staff.get(reverse("admin:tenants_organisation_change", args=[acme.pk])))
    assert "Asked for" in one
    assert "copies of the database are kept 35 days" in one
    assert "2 data keys" not in one
    assert "version 1, 0 days old" in one
    with pytest.raises(Refused, match="erasure of this organisation's keys"):
        services.create_server(actor=alice, organisation=acme, name="late", region="local")
    back = {"action": "withdraw_erasure", "_selected_action": str(acme.pk)}
    assert "Acme keeps its keys" in text_of(staff.post(target, back, follow=True))
    assert "none was asked for" in text_of(staff.post(target, back, follow=True))
    assert services.create_server(actor=alice, organisation=acme, name="chat", region="local")


def test_living_servers_keep_their_keys(
    staff: Client, acme: Organisation, make_server: MakeServer, alice: User
) -> None:
    make_server("chat")
    fill(acme)
    with pytest.raises(Refused, match=r"has 1 server\. Nothing was changed"):
        services.request_erasure(actor=alice, organisation=acme, confirm="acme")
    # Even a request that went past this verb destroys nothing.
    erasure.request(SYSTEM, acme.pk)
    Erasure.objects.update(destroy_after=timezone.now())
    assert erasure.advance() == 0
    assert DataKey.objects.filter(owner=acme.pk).count() == 6
    Server.objects.update(deleted=timezone.now())
    Erasure.objects.update(destroy_after=timezone.now())
    assert erasure.advance() == 1


def test_one_at_a_time(staff: Client, acme: Organisation, charlie: User, plans: dict[str, Plan]) -> None:
    other = services.create_organisation(actor=charlie, name="Other", plan=plans["ember"])
    both = {"action": "request_erasure", "_selected_action": [str(acme.pk), str(other.pk)]}
    seen = text_of(staff.post(reverse("admin:tenants_organisation_changelist"), both, follow=True))
    assert "Choose one organisation" in seen


def test_staff_rotate(staff: Client, acme: Organisation) -> None:
    target = reverse("admin:tenants_organisation_changelist")
    chosen = {"action": "rotate_key", "_selected_action": str(acme.pk)}
    assert "no key yet" in text_of(staff.post(target, chosen, follow=True))
    fill(acme)
    made_before(acme, hours=2)
    assert "version 2 is active" in text_of(staff.post(target, chosen, follow=True))


def test_staff_who_may_only_look_do_not_act(acme: Organisation, client_for: SignIn) -> None:
    from django.contrib.auth.models import Permission  # noqa: PLC0415 (used by this test alone)

    looker = make_user("lou@example.org", staff=True)
    User.objects.filter(pk=looker.pk).update(is_superuser=False)
    looker.user_permissions.add(Permission.objects.get(codename="view_organisation"))
    looker = User.objects.get(pk=looker.pk)
    hers = client_for(looker)
    for action in ("request_erasure", "withdraw_erasure", "rotate_key"):
        sent = {"action": action, "_selected_action": str(acme.pk), "confirm": "acme"}
        hers.post(reverse("admin:tenants_organisation_changelist"), sent)
    assert not Erasure.objects.exists()


# Names, for everybody who asks the keyring


def test_organisations_are_called_by_their_names(
    acme: Organisation, staff: Client, charlie: User, plans: dict[str, Plan]
) -> None:
    other = services.create_organisation(actor=charlie, name="Other", plan=plans["ember"])
    for each in (acme, other):
        fill(each)
    KeyEncryptionKey.objects.filter(owner=acme.pk).update(rotate_after=timezone.now() - timedelta(days=3))
    assert report.name(acme.pk) == "Acme"
    assert "version 1 of Acme" in {line.key for line in report.report().keys}
    assert "of Acme was to be replaced by" in report.sentences()[0]
    target = reverse("admin:security_keyencryptionkey_changelist")
    staff.get(target)
    with CaptureQueriesContext(connection) as few:
        seen = text_of(staff.get(target))
    assert "Acme" in seen
    assert "Keys: 1 overdue" in seen
    for number in range(20):
        keks.ensure_kek(Organisation.objects.create(name=f"Organisation {number}", slug=f"o-{number}").pk)
    with CaptureQueriesContext(connection) as many:
        staff.get(target)
    assert len(many) == len(few)
    found = text_of(staff.get(target, {"q": str(other.pk)}))
    assert "Other" in found
    assert "Acme" not in found
    for model in ("rewrap", "erasure"):
        assert staff.get(reverse(f"admin:security_{model}_changelist")).status_code == 200
