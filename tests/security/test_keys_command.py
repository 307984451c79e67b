"""`manage.py keys`, the staff pages, the metric and the tasks."""

from __future__ import annotations

import io
import json
import os
import subprocess
import uuid
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.core.management import CommandError, call_command
from django.db import DatabaseError, connection
from django.test import Client
from django.urls import reverse
from django.utils import timezone
from prometheus_client import REGISTRY
from pytest_django import Settings

from accounts.models import User
from audit.services import SYSTEM
from config.env import read
from config.schedule import EVERY
from notifications.models import Mail
from security import tasks
from security.errors import SecurityError
from security.fields import Sealed
from security.keyring import deks, erasure, keks, report, roots, running
from security.keyring.deks import Context
from security.keyring.seams import seams
from security.models import PLATFORM, DataKey, Erasure, KeyEncryptionKey, Rewrap, RootKey
from tests.cast import make_user
from tests.security.old import seal_old
from tests.security.softhsm import Hsm

pytestmark = pytest.mark.django_db
OWNER = uuid.uuid4()
CONTEXT = Context(OWNER, "backup.media")


@pytest.fixture
def own_file(settings: Settings, key_file: Path) -> Path:
    """A key file of the test's own."""
    settings.HEARTH = {**settings.HEARTH, "HEARTH_KEY_FILE": str(key_file)}
    return key_file


def keys(*words: str) -> str:
    out = io.StringIO()
    call_command("keys", *words, stdout=out)
    return out.getvalue()


def make_late() -> None:
    keks.ensure_kek(OWNER)
    keks.ensure_kek(PLATFORM)
    KeyEncryptionKey.objects.filter(owner=OWNER).update(rotate_after=timezone.now() - timedelta(days=1))


def test_show_says_what_there_is_and_what_to_back_up(own_file: Path) -> None:
    deks.new_data_key(CONTEXT)
    text = keys("show")
    assert f"version 1 of organisation {OWNER}: active, 0 days old, 1 data keys, next rotation" in text
    assert f"{own_file} (root key file:" in text
    assert "Overdue: 0" in text
    own_file.unlink()
    assert "NOT FOUND: the root key file:" in keys("show")


def test_report_as_json(own_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_late()
    deks.new_data_key(CONTEXT)
    monkeypatch.setattr(seams, "owner_names", [lambda _: {OWNER: "Acme"}])
    RootKey.objects.update(created=timezone.now() - timedelta(days=12))
    found = json.loads(keys("report", "--json"))
    lines = {line["key"]: line for line in found["keys"]}
    assert lines["version 1 of Acme"]["overdue"] is True
    assert lines["version 1 of Acme"]["data_keys"] == 1
    assert lines["version 1 of the platform"]["overdue"] is False
    assert [line["age_days"] for name, line in lines.items() if name.startswith("root")] == [12]
    assert (found["overdue"], found["rotation_days"], found["sources"][0]["kind"]) == (1, 90, "file")


def test_the_report_as_an_option_too(own_file: Path) -> None:
    keks.ensure_kek(OWNER)
    for words in (("--report", "--json"), ("--json", "report"), ("report", "--json")):
        assert json.loads(keys(*words))["overdue"] == 0
    assert keys("--report") == keys("report")
    assert "Back up:" in keys()


def test_report_for_people(own_file: Path) -> None:
    make_late()
    Rewrap.objects.create(owner=OWNER, total=7, done=3, error="The HSM is away.")
    erasure.request(SYSTEM, uuid.uuid4())
    text = keys("report")
    assert "OVERDUE" in text
    assert "3 of 7. The HSM is away." in text
    assert "complete on" in text


def test_rotate_and_rewrap(own_file: Path) -> None:
    identity, key = deks.new_data_key(CONTEXT)
    keks.ensure_kek(PLATFORM)
    assert "version 2 is active" in keys("rotate")
    assert KeyEncryptionKey.objects.filter(version=2).count() == 2
    assert "1 of 1" in keys("rewrap")
    assert deks.open_data_key(identity, CONTEXT).value == key.value
    assert "the platform: version 3" in keys("rotate", "--owner", "platform")
    assert "encrypted again" in keys("rotate", "--owner", str(OWNER), "--compromised")
    assert DataKey.objects.get(pk=identity).reencrypt is not None
    Rewrap.objects.filter(owner=OWNER).delete()
    Rewrap.objects.create(owner=OWNER, total=1, lease=uuid.uuid4(), lease_until=timezone.now() + timedelta(hours=1))
    assert "Another worker has it" in keys("rewrap")


@pytest.mark.parametrize(("owner", "reason"), [("nobody", "neither"), (str(uuid.UUID(int=5)), "no key of")])
def test_rotate_somebody_unknown(own_file: Path, owner: str, reason: str) -> None:
    with pytest.raises(CommandError, match=reason):
        keys("rotate", "--owner", owner)
    assert KeyEncryptionKey.objects.count() == 0


def test_move_to_hsm(own_file: Path, hsm: Hsm, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    identity, key = deks.new_data_key(CONTEXT)
    with pytest.raises(CommandError, match="HEARTH_HSM_MODULE"):
        keys("move-to-hsm")
    settings.HEARTH = {**settings.HEARTH, **hsm.settings()}
    monkeypatch.setattr(seams, "root_needed", [lambda _: 1])
    assert "still needed by 1 others" in keys("move-to-hsm")
    monkeypatch.setattr(seams, "root_needed", [])
    text = keys("move-to-hsm")
    assert "needed no more" in text
    assert f"token {hsm.label}" in text
    assert RootKey.objects.filter(id__startswith="hsm:").count() == 1
    own_file.unlink()
    keks.cache.clear()
    assert deks.open_data_key(identity, CONTEXT).value == key.value
    hsm.take_away()
    assert "does not answer" in keys("report")


@pytest.fixture
def serve(settings: Settings) -> Iterator[Callable[..., int]]:
    """Return a function that starts a process which looks like Hearth's web server, with the settings given."""
    started: list[subprocess.Popen[bytes]] = []

    def start(**given: str) -> int:
        own = {"DATABASE_URL": str(settings.HEARTH["DATABASE_URL"]), "PATH": os.environ["PATH"]} | given
        started.append(subprocess.Popen(["sleep", "600"], env=own))
        return started[-1].pid

    yield start
    for process in started:
        process.kill()
        process.wait()


def test_it_moves_to_no_hsm_that_the_running_processes_do_not_know(
    own_file: Path, hsm: Hsm, settings: Settings, serve: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "SERVING", (b"sleep", b"celery"))
    keks.ensure_kek(OWNER)
    settings.HEARTH = {**settings.HEARTH, **hsm.settings()}
    right = {name: str(value) for name, value in hsm.settings().items()}
    serve(DATABASE_URL="postgres:///another")
    serve(**right)
    assert running.lacking(settings.HEARTH) == []
    without, other = serve(), serve(**right, HEARTH_HSM_SLOT="7")
    with pytest.raises(CommandError, match="Nothing was changed") as refusal:
        keys("move-to-hsm")
    assert all(f"the web server (process {pid})" in str(refusal.value) for pid in (without, other))
    assert RootKey.objects.get().kind == "file"


def test_processes_that_cannot_be_looked_at_are_not_ours(settings: Settings, tmp_path: Path) -> None:
    for name, content in (("self", b""), ("17", None), ("18", b"celery\0worker"), ("19", b"bash")):
        (tmp_path / name).mkdir()
        if content is not None:
            (tmp_path / name / "cmdline").write_bytes(content)
    assert running.lacking(settings.HEARTH, tmp_path) == []
    (tmp_path / "18" / "environ").write_bytes(f"HEARTH_STATE={settings.HEARTH['HEARTH_STATE']}\0".encode())
    given = {**settings.HEARTH, "HEARTH_HSM_MODULE": "/usr/lib/hsm.so"}
    assert running.lacking(given, tmp_path) == ["the worker (process 18)"]


def test_destroy(own_file: Path) -> None:
    deks.new_data_key(CONTEXT)
    keys("rotate")
    with pytest.raises(CommandError, match="still wraps 1 data keys"):
        keys("destroy", str(OWNER), "1")
    keys("rewrap")
    assert "Destroyed version 1" in keys("destroy", str(OWNER), "1")
    with pytest.raises(CommandError, match="no version 7"):
        keys("destroy", str(OWNER), "7")


def test_no_setting_rotates_later_than_after_90_days() -> None:
    with pytest.raises(ImproperlyConfigured, match="between 1 and 90"):
        read({"HEARTH_KEY_ROTATION_DAYS": "91"})


def test_reseal(own_file: Path) -> None:
    mail = Mail.objects.create(recipient="a@example.org", subject="", text="one")
    broken = Mail.objects.create(recipient="b@example.org", subject="", text="two")
    Mail.objects.filter(pk=mail.pk).update(text=Sealed(seal_old(b"one", "notifications.mail.text")))
    Mail.objects.filter(pk=broken.pk).update(text=Sealed(b"\x01broken"))
    text = keys("reseal")
    assert "Sealed 1 values anew" in text
    assert f"NOT OPENED: A sealed value of notifications.mail.text of row {broken.pk}" in text


def test_an_interrupted_root_rotation_goes_on(own_file: Path) -> None:
    keks.ensure_kek(OWNER)
    second = roots.rotate_root(SYSTEM)
    text = keys("rotate-root")
    assert "earlier rotation: 1 keys were moved" in text
    assert f"{second.id} is active. 0 keys were moved" in text
    assert RootKey.objects.count() == 2
    assert "1 keys were moved" in keys("rotate-root")
    assert RootKey.objects.count() == 3
    assert len(list(own_file.parent.iterdir())) == 3


def test_damaged_keys_do_not_keep_a_root_key_for_ever(own_file: Path) -> None:
    good, damaged = keks.ensure_kek(OWNER), keks.ensure_kek(uuid.uuid4())
    KeyEncryptionKey.objects.filter(pk=damaged.pk).update(wrapped=b"nonsense")
    for moved in (1, 1):
        before = RootKey.objects.get(state="active")
        with pytest.raises(CommandError, match=f"{moved} keys were moved to the root key .*{damaged.pk}"):
            keys("rotate-root")
        good.refresh_from_db()
        assert good.root != before
    assert RootKey.objects.count() == 3
    # One that was interrupted goes on first, and says what it can't move.
    roots.rotate_root(SYSTEM)
    with pytest.raises(CommandError, match="1 keys were moved"):
        keys("rotate-root")
    assert RootKey.objects.count() == 4


def test_bundle_and_restore(own_file: Path, tmp_path: Path) -> None:
    identity, key = deks.new_data_key(CONTEXT)
    file = tmp_path / "bundle"
    assert "Only the root key opens it" in keys("bundle", "region-one", str(file))
    assert file.stat().st_mode & 0o777 == 0o600
    with pytest.raises(CommandError, match="File exists"):
        keys("bundle", "region-one", str(file))
    with pytest.raises(CommandError, match="not empty"):
        keys("restore-bundle", "region-one", str(file))
    with connection.cursor() as cursor:
        cursor.execute("set constraints all immediate")
        cursor.execute("truncate security_datakey, security_keyencryptionkey, security_rootkey")
    assert "1 key versions and 1 data keys" in keys("restore-bundle", "region-one", str(file))
    assert deks.open_data_key(identity, CONTEXT).value == key.value


def test_the_metric_counts_what_is_overdue(monkeypatch: pytest.MonkeyPatch) -> None:
    make_late()
    assert REGISTRY.get_sample_value("hearth_keys_overdue", {"kind": "kek"}) == 1
    assert REGISTRY.get_sample_value("hearth_keys_overdue", {"kind": "root"}) == 0
    RootKey.objects.update(rotate_after=timezone.now() - timedelta(days=1))
    assert REGISTRY.get_sample_value("hearth_keys_overdue", {"kind": "root"}) == 1

    def away() -> None:
        raise DatabaseError

    monkeypatch.setattr(report, "overdue_keks", away)
    assert REGISTRY.get_sample_value("hearth_keys_overdue", {"kind": "kek"}) is None


def test_the_tasks_do_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    assert {tasks.rotate_due.name, tasks.rewrap_due.name} <= set(EVERY)
    make_late()
    identity, key = deks.new_data_key(CONTEXT)
    RootKey.objects.update(rotate_after=timezone.now() - timedelta(days=1))
    erased = uuid.uuid4()
    erasure.request(SYSTEM, erased)
    told: list[str] = []
    monkeypatch.setattr(seams, "overdue", [told.extend])
    tasks.rotate_due()
    assert len(told) == 1
    assert "root key" in told[0]
    tasks.rewrap_due()
    assert DataKey.objects.get(pk=identity).kek.version == 2
    assert deks.open_data_key(identity, CONTEXT).value == key.value
    assert Erasure.objects.get(owner=erased).destroyed is not None
    RootKey.objects.update(rotate_after=timezone.now() + timedelta(days=1))
    tasks.rotate_due()
    assert len(told) == 1


def test_what_could_not_be_rotated_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    make_late()
    told: list[str] = []
    monkeypatch.setattr(seams, "overdue", [told.extend])

    def fail() -> int:
        raise SecurityError("away")

    monkeypatch.setattr(keks, "rotate_due", fail)
    with pytest.raises(SecurityError):
        tasks.rotate_due()
    assert str(OWNER) in told[0]


def test_staff_see_the_report_and_no_key(client_for: Callable[[User], Client]) -> None:
    make_late()
    keks.rotate(SYSTEM, PLATFORM)
    erasure.request(SYSTEM, uuid.uuid4())
    client = client_for(make_user("sally@example.org", staff=True))
    page = client.get(reverse("admin:security_keyencryptionkey_changelist")).content.decode()
    assert "Keys: 1 overdue" in page
    assert all(word in page for word in ("Overdue", "In time", "replaced"))
    kek = KeyEncryptionKey.objects.get(owner=OWNER)
    one = client.get(reverse("admin:security_keyencryptionkey_change", args=[kek.pk])).content.decode()
    assert bytes(kek.wrapped).hex() not in page + one
    assert "wrapped" not in one.lower()
    for key in (RootKey.objects.get().pk, "\x00", "file:none"):
        known = key.startswith("file:") and key != "file:none"
        assert client.get(reverse("admin:security_rootkey_change", args=[key])).status_code == (200 if known else 302)
    for model in ("rootkey", "rewrap", "erasure"):
        assert client.get(reverse(f"admin:security_{model}_changelist")).status_code == 200
    KeyEncryptionKey.objects.update(rotate_after=timezone.now() + timedelta(days=1))
    page = client.get(reverse("admin:security_keyencryptionkey_changelist")).content.decode()
    assert "none is overdue" in page


def test_nobody_else_sees_it(alice: User, client_for: Callable[[User], Client]) -> None:
    assert client_for(alice).get(reverse("admin:security_rootkey_changelist")).status_code in (302, 403)
