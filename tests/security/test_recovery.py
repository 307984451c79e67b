"""A keyring from key bundles: from several places, over damage, over losses that came before, without the erased."""

from __future__ import annotations

import io
import os
import random
import signal
import subprocess
import sys
import time
import uuid
from datetime import timedelta
from pathlib import Path

import pytest
from django.core.management import CommandError, call_command
from django.db import connection
from django.utils import timezone
from pytest_django import Settings

from audit.models import AuditEvent
from audit.services import SYSTEM
from security.errors import BundleError, UnknownRootKey
from security.keyring import bundle, deks, erasure, keks, publish, recovery, rewrap, roots, upkeep
from security.keyring.deks import Context
from security.keyring.places import FolderPlace
from security.keyring.seams import seams
from security.models import PLATFORM, BundleFile, DataKey, Erasure, KeyEncryptionKey, RootKey
from security.sealing import seal, unseal
from tests.security.places import OTHER, OWNER, SERVER, Faulty, Keys, age, lose, make, opens
from tests.security.softhsm import Hsm

pytestmark = pytest.mark.django_db
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _two_places(both: list[Faulty], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seams, "keep_keys_until", [])


def keep() -> None:
    upkeep.keep(seconds=30)


def spoil(place: Faulty, name: str) -> None:
    path = place.folder.path / name
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def back(*places: Faulty) -> recovery.Recovered:
    lose()
    return recovery.from_places(SYSTEM, places)


def test_what_one_place_lost_another_has(one: Faulty, two: Faulty) -> None:
    first, second = make(2), make(2, OTHER)
    publish.publish(first)
    publish.publish(second)
    names = []
    for place, which in ((one, 0), (two, 1)):
        rows = BundleFile.objects.filter(place=place.name).order_by("created")
        names.append(rows[which].name)
        spoil(place, names[-1])
    done = back(one, two)
    assert done.data_keys == 4
    assert min(done.faults).startswith(min(names))
    assert len(done.faults) == 2
    assert opens(first | second)
    event = AuditEvent.objects.get(verb="keys.restore")
    assert (event.after["bundles"], event.after["data_keys"]) == (2, 4)


def test_one_that_is_cut_off_or_foreign_stops_nothing(one: Faulty, two: Faulty) -> None:
    keys = make()
    publish.publish(keys)
    (one.folder.path / one.list()[0]).write_bytes(b"HKB1")
    two.folder.put("of-one.hkb", b"junk")
    done = back(one, two)
    assert (done.data_keys, len(done.faults)) == (1, 2)


def test_a_place_that_is_away_stops_nothing(one: Faulty, two: Faulty, tmp_path: Path) -> None:
    keys = make()
    publish.publish(keys)
    away = Faulty(FolderPlace("away", tmp_path / "mnt"))
    done = back(away, two)
    assert done.data_keys == 1
    assert "Is its disk mounted" in done.faults[0]


def test_nothing_that_opens_is_an_error(one: Faulty, two: Faulty) -> None:
    keks.ensure_kek(OWNER)
    with pytest.raises(BundleError, match="no key bundle that opens"):
        back(one, two)


def test_the_newest_whole_keyring_is_enough(one: Faulty, two: Faulty) -> None:
    gone = make()
    for place in (one, two):
        created, root = timezone.now() - timedelta(days=1), roots.ensure_root()
        data = bundle.seal(place.name, bundle.read(), bundle.Part(), root=root, created=created)
        place.folder.put("of-yesterday.hkb", data)
    DataKey.objects.all().delete()
    keys = make()
    for place in (one, two):
        upkeep.write_whole(place)
    done = back(one, two)
    assert (done.data_keys, done.bundles) == (1, 2)  # what was deleted before it stays deleted
    assert opens(keys)
    assert not DataKey.objects.filter(pk__in=gone).exists()


def test_older_ones_step_in_for_damage(one: Faulty, two: Faulty) -> None:
    keys = make()
    keep()
    age(2)
    more = make()
    keep()
    for place in (one, two):
        newest = BundleFile.objects.filter(place=place.name).latest("created")
        spoil(place, newest.name)
    done = back(one, two)
    assert (done.data_keys, len(done.faults)) == (1, 2)
    assert opens(keys)
    assert not DataKey.objects.filter(pk__in=more).exists()


def test_rows_are_as_they_were_seen_last(one: Faulty, two: Faulty) -> None:
    keys = make(3)
    publish.publish(keys)
    keks.rotate(SYSTEM, OWNER)
    publish.publish(keys)
    rewrap.drive(per_second=1e6)
    more = make()
    publish.publish(more)
    back(one, two)
    states = dict(KeyEncryptionKey.objects.filter(owner=OWNER).values_list("version", "state"))
    assert states == {1: "decrypt-only", 2: "active"}
    assert opens(keys | more)
    rewrap.drive(per_second=1e6)
    assert keks.rotate(SYSTEM, OWNER).version == 3
    assert opens(keys | more)


def test_a_retired_version_opens_again_what_an_older_bundle_brings(one: Faulty, two: Faulty) -> None:
    gone = make()
    publish.publish(gone)
    DataKey.objects.all().delete()
    kept = make()
    keks.rotate(SYSTEM, OWNER)
    rewrap.drive(per_second=1e6)
    assert KeyEncryptionKey.objects.get(version=1).state == "retired"
    one.folder.put("whole.hkb", bundle.build("one"))
    back(one, two)
    assert opens(gone | kept)
    assert KeyEncryptionKey.objects.get(version=1).state == "decrypt-only"


def test_a_retired_root_key_opens_again_what_an_older_bundle_brings(one: Faulty) -> None:
    gone = make()
    one.folder.put("old.hkb", bundle.build("one"))
    with connection.cursor() as cursor:
        cursor.execute("set constraints all immediate")
        cursor.execute("truncate security_datakey, security_keyencryptionkey")
    keks.cache.clear()
    kept = make(1, OTHER)
    roots.rotate_root(SYSTEM)
    roots.move_keks(SYSTEM)
    assert RootKey.objects.filter(state="retired").count() == 1
    publish.publish(kept)
    back(one)
    assert opens(gone | kept)
    assert sorted(RootKey.objects.values_list("state", flat=True)) == ["active", "readable"]


def test_a_first_start_made_another_root_key(one: Faulty, hsm: Hsm, settings: Settings) -> None:
    keys = make()
    publish.publish(keys)
    lose()
    settings.HEARTH = {**settings.HEARTH, **hsm.settings(), "HEARTH_KEY_SOURCE": "hsm"}
    keks.ensure_kek(PLATFORM)
    recovery.from_places(SYSTEM, [one])
    assert opens(keys)
    states = {root.kind: root.state for root in RootKey.objects.all()}
    assert states == {"hsm": "active", "file": "readable"}


def test_two_losses_one_after_the_other(one: Faulty, two: Faulty) -> None:
    """The database came back from an old copy, and made other keys under numbers that the lost ones had."""
    old = make()
    publish.publish(old)
    lose()
    new = make()
    publish.publish(new)
    sealed = seal(b"x", "accounts.totp")
    one.folder.put("whole.hkb", bundle.build("one"))
    back(one, two)
    assert opens(old | new)
    assert sorted(KeyEncryptionKey.objects.filter(owner=OWNER).values_list("version", "state")) == [
        (1, "active"),
        (2, "decrypt-only"),
    ]
    deks.cache.clear()
    assert unseal(sealed, "accounts.totp") == b"x"


def test_one_shared_key_of_a_column_seals_on(one: Faulty) -> None:
    context = Context(OWNER, "column:x.y")
    first = deks.shared_data_key(context)
    one.folder.put("first.hkb", bundle.build("one"))
    lose()
    second = deks.shared_data_key(context)
    marked = deks.new_data_key(Context(OWNER, "backup.wal"))
    keks.rotate(SYSTEM, OWNER, compromised=True)
    third = deks.shared_data_key(context)
    one.folder.put("second.hkb", bundle.build("one"))
    back(one)
    deks.cache.clear()
    assert deks.shared_data_key(context).id == third.id
    for each in (first, second):
        assert deks.open_data_key(each.id, context).value == each.key.value
    assert DataKey.objects.get(pk=marked.id).reencrypt is not None


def test_a_request_that_was_withdrawn_stays_withdrawn(one: Faulty, two: Faulty) -> None:
    later = timezone.now() + timedelta(days=30)
    seams.keep_keys_until.append(lambda _: later)
    make()
    make(1, OTHER)
    erasure.request(SYSTEM, OWNER)
    keep()
    erasure.withdraw(SYSTEM, OWNER)
    erasure.request(SYSTEM, OTHER)
    age(2)
    keep()
    spoil(one, BundleFile.objects.filter(place="one").latest("created").name)  # so older ones are read too
    back(one, two)
    row = Erasure.objects.get()
    assert (row.owner, row.destroyed, row.destroy_after) == (OTHER, None, later)


def test_an_erasure_counts_whatever_a_newer_bundle_says(one: Faulty) -> None:
    """An older copy of the database was in use for a while: it did not know."""
    make()
    erasure.request(SYSTEM, OWNER)
    before = list(Erasure.objects.values())
    erasure.advance()
    one.folder.put("erased.hkb", bundle.build("one"))
    lose()
    make()
    Erasure.objects.create(**before[0])
    one.folder.put("newer.hkb", bundle.build("one"))
    assert back(one).data_keys == 0
    assert Erasure.objects.get().destroyed is not None


def test_a_bundle_of_before_erasures_were_in_it(one: Faulty) -> None:
    keys = make()
    rows = bundle.read()
    del rows["erasures"]
    data = bundle.seal("one", rows, bundle.Part(), root=roots.ensure_root(), created=timezone.now())
    one.folder.put("old.hkb", data)
    back(one)
    assert opens(keys)


def test_without_the_root_key_nothing_is_written(one: Faulty, two: Faulty, tmp_path: Path, settings: Settings) -> None:
    publish.publish(make())
    lose()
    settings.HEARTH = {**settings.HEARTH, "HEARTH_KEY_FILE": str(tmp_path / "other" / "root.key")}
    with pytest.raises(BundleError, match="no key bundle that opens"):
        recovery.from_places(SYSTEM, [one, two])
    assert KeyEncryptionKey.objects.count() == 0


def test_with_an_hsm(one: Faulty, two: Faulty, hsm: Hsm, settings: Settings) -> None:
    settings.HEARTH = {**settings.HEARTH, **hsm.settings(), "HEARTH_KEY_SOURCE": "hsm"}
    keys = make(2)
    publish.publish(keys)
    keep()
    back(one, two)
    assert opens(keys)
    settings.HEARTH = {**settings.HEARTH, "HEARTH_HSM_MODULE": ""}
    with pytest.raises((BundleError, UnknownRootKey)):
        back(one)


@pytest.mark.django_db(transaction=True)
def test_killed_while_it_publishes(tmp_path: Path) -> None:
    """What a publish said was published is at every place, whenever the next process died."""
    folders = [FolderPlace(name, tmp_path / name) for name in ("near", "far")]
    for folder in folders:
        folder.path.mkdir()
    dice, said, killed = random.Random(4711), set[uuid.UUID](), 0
    for turn in range(3):
        worker = start_publisher(folders)
        assert worker.stdout is not None
        assert worker.stdout.readline() == b"ready\n"
        if turn == 0:  # one of them has published something, however slow the machine is
            said.add(uuid.UUID(worker.stdout.readline().decode().strip()))
        time.sleep(dice.uniform(0.05, 0.4))
        worker.send_signal(signal.SIGKILL)
        killed += worker.wait(60) == -signal.SIGKILL
        lines = worker.stdout.read().split(b"\n")[:-1]
        said |= {uuid.UUID(line.decode()) for line in lines}
        worker.stdout.close()
    assert killed == 3
    assert said
    contents: Keys = {pk: (Context(OWNER, "backup.wal", SERVER), b"") for pk in said}
    for folder in folders:
        found = [bundle.parse(folder.get(name), folder.name) for name in folder.list()]
        assert said <= {row["id"] for each in found for row in each.data_keys}
        # Every file, also of those that died, is known to the database: its keys are counted in an erasure.
        assert set(folder.list()) <= set(BundleFile.objects.values_list("name", flat=True))
    lose()
    done = recovery.from_places(SYSTEM, folders)
    assert done.faults == []
    assert DataKey.objects.filter(pk__in=contents).count() == len(said)


def start_publisher(folders: list[FolderPlace]) -> subprocess.Popen[bytes]:
    """Start a process that publishes new data keys, one after the other, and says so."""
    code = (
        "import uuid, django; django.setup()\n"
        "from security.keyring import deks, publish\n"
        "from security.keyring.deks import Context\n"
        f"context = Context(uuid.UUID('{OWNER}'), 'backup.wal', uuid.UUID('{SERVER}'))\n"
        "print('ready', flush=True)\n"
        "while True:\n"
        "    made = deks.new_data_key(context).id\n"
        "    publish.publish([made])\n"
        "    print(made, flush=True)\n"
    )
    name = connection.settings_dict["NAME"]
    url = os.environ["DATABASE_URL"].replace("/hearth?", f"/{name}?")
    environment = os.environ | {"DATABASE_URL": url, "PYTHONPATH": f"{ROOT / 'platform'}:{ROOT}"}
    environment["HEARTH_KEY_BUNDLES"] = ",".join(f"{each.name}:{each.path}" for each in folders)
    return subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=environment, stdout=subprocess.PIPE)


# The command


def command(*words: str) -> str:
    out = io.StringIO()
    call_command("keys", *words, stdout=out)
    return out.getvalue()


def test_the_command_publishes_and_restores(one: Faulty, two: Faulty, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publish, "MOST", 2)
    keys = make(3)
    assert "Wrote the whole keyring to two, in 2 parts" in command("publish")
    spoil(two, two.list()[0])
    lose()
    text = command("restore-bundles")
    assert "Restored 3 data keys from 3 bundles" in text
    assert "NOT READ: " in text
    assert opens(keys)
    lose()
    assert "from 2 bundles" in command("restore-bundles", f"one:{one.folder.path}")
    with pytest.raises(CommandError, match="not empty"):
        command("restore-bundles")
    with pytest.raises(CommandError, match="Name each place"):
        command("restore-bundles", "one")


def test_the_command_bundles_one_owner(tmp_path: Path) -> None:
    make(2)
    make(1, OTHER)
    keks.ensure_kek(PLATFORM)
    file = tmp_path / "bundle"
    text = command("bundle", "here", str(file), "--owner", str(OWNER), "--owner", "platform")
    assert "Remove it within 14 days" in text
    found = bundle.parse(file.read_bytes(), "here")
    assert {row["owner"] for row in found.keks} == {OWNER, PLATFORM}
    assert len(found.data_keys) == 2
