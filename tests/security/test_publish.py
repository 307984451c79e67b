"""A data key is published when every place holds it, and a keyring comes back from the places alone."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path

import pytest
from django.apps import apps
from django.core.exceptions import ImproperlyConfigured
from pytest_django import Settings

from audit.services import SYSTEM
from config.env import read
from security.errors import BundleError, KeyGone, KeysChanged, NotPublished
from security.keyring import bundle, copies, deks, places, publish, recovery
from security.keyring.places import Errand, FolderPlace, PlaceError
from security.keyring.seams import seams
from security.models import BundleFile
from security.streams import Cipher, decrypt, encrypt
from security.streams import Context as StreamContext
from security.streams import DataKey as StreamKey
from tests.left_out import leave_out
from tests.security.places import OTHER, OWNER, SERVER, Faulty, lose, make, opens

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def _two_places(both: list[Faulty]) -> None:
    """Two places, as the default has them."""


# Publishing


def test_it_works(both: list[Faulty]) -> None:
    keys = make(3)
    others = make(2, OTHER)
    publish.publish(keys)
    for place in both:
        (name,) = place.list()
        found = bundle.parse(place.folder.get(name), place.name)
        assert {row["id"] for row in found.data_keys} == set(keys)
        assert {row["owner"] for row in found.keks} == {OWNER}
        assert found.part.kind == "delta"
    rows = BundleFile.objects.all()
    assert [(row.kind, row.verified is not None, row.size > 500) for row in rows] == [("delta", True, True)] * 2
    lose()
    done = recovery.from_places(SYSTEM, both)
    assert (done.data_keys, done.bundles, done.faults) == (3, 2, [])
    assert opens(keys)
    with pytest.raises(KeyGone):
        opens(others)


def test_a_backup_is_read_again_from_root_key_and_folder_alone(both: list[Faulty]) -> None:
    keys = make()
    (identity,) = keys
    context = StreamContext(organisation=str(OWNER), server=str(SERVER), path="wal/0")
    stored = b"".join(encrypt([b"what Alice wrote"], StreamKey(identity, keys[identity][1]), context, Cipher(1)))
    publish.publish([identity])
    lose()
    recovery.from_places(SYSTEM, [FolderPlace("two", both[1].folder.path)])
    opened = deks.open_data_key(identity, keys[identity][0])
    assert b"".join(decrypt([stored], StreamKey(identity, bytes(opened.value)), context)) == b"what Alice wrote"


def test_a_publish_costs_what_it_publishes(both: list[Faulty]) -> None:
    publish.publish(make())
    first = BundleFile.objects.latest("created").size
    make(80)
    publish.publish(make())
    assert BundleFile.objects.latest("created").size < 1.2 * first


def test_many_are_written_in_several_bundles(both: list[Faulty], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publish, "MOST", 4)
    keys = make(10)
    publish.publish(keys)
    assert BundleFile.objects.filter(place="one").count() == 3
    lose()
    assert recovery.from_places(SYSTEM, both).data_keys == 10
    assert opens(keys)


def test_nothing_to_publish_writes_nothing(both: list[Faulty]) -> None:
    publish.publish([])
    assert not BundleFile.objects.exists()


def test_again_is_always_right(both: list[Faulty]) -> None:
    keys = make()
    publish.publish(keys)
    publish.publish(keys)
    lose()
    assert recovery.from_places(SYSTEM, both).data_keys == 1


def test_a_key_that_is_not_there_is_not_published(both: list[Faulty]) -> None:
    unknown = uuid.uuid4()
    with pytest.raises(KeyGone, match=str(unknown)):
        publish.publish([*make(), unknown])
    assert not BundleFile.objects.exists()
    assert both[0].calls == []


@pytest.mark.django_db(transaction=True)
def test_what_may_be_taken_back_is_not_published() -> None:
    from django.db import transaction  # noqa: PLC0415 (used here alone)

    with pytest.raises(RuntimeError, match="durable"), transaction.atomic():
        publish.publish(make())


# Places that fail


def test_one_place_that_fails_is_enough_to_refuse(one: Faulty, two: Faulty) -> None:
    def fail() -> None:
        raise OSError(28, "No space left on device")

    two.before_put = fail
    keys = make()
    with pytest.raises(NotPublished, match=r"No space left.* nothing was named"):
        publish.publish(keys)
    assert {row.place for row in BundleFile.objects.filter(verified__isnull=False)} == {"one"}
    two.before_put = lambda: None
    publish.publish(keys)


def test_a_client_that_fails_in_its_own_way(two: Faulty, caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> None:
        raise LookupError("no such bucket")

    two.before_get = fail
    with pytest.raises(NotPublished, match="two failed; the log says how"):
        publish.publish(make())
    assert "no such bucket" in caplog.text


def test_a_place_that_returns_old_data(two: Faulty) -> None:
    two.stale = b"of yesterday"
    with pytest.raises(NotPublished, match="two gives back something else"):
        publish.publish(make())
    two.stale_for = 1
    publish.publish(make())  # a store that needs a moment


def test_a_place_that_hangs_costs_its_time_and_few_threads(two: Faulty) -> None:
    gate = threading.Event()

    def hang() -> None:
        gate.wait(60)

    two.before_put = hang
    try:
        for _ in range(places.MOST_HANGING):
            with pytest.raises(NotPublished, match="two did not answer in time"):
                publish.publish(make(), seconds=0.4)
        with pytest.raises(NotPublished, match="still hangs"):
            publish.publish(make(), seconds=0.4)
        hanging = [thread for thread in threading.enumerate() if thread.name == "place-two"]
        assert len(hanging) == places.MOST_HANGING
    finally:
        gate.set()
    for thread in hanging:
        thread.join(60)
    publish.publish(make())


def test_a_time_out_of_the_places_own_is_its_own() -> None:
    place = FolderPlace("x", Path("/nowhere"))

    def late() -> None:
        raise TimeoutError("connect")

    with pytest.raises(TimeoutError, match="connect"):
        Errand(place, late).result(10)


def test_there_must_be_places_of_different_names(one: Faulty, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seams, "places", [])
    with pytest.raises(BundleError, match="HEARTH_KEY_BUNDLES"):
        publish.publish(make())
    monkeypatch.setattr(seams, "places", [lambda: [one], lambda: [one]])
    with pytest.raises(BundleError, match="one name"):
        publish.publish(make())


def test_what_the_keyring_asks_is_registered_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seams, "places", [])
    before = (list(seams.root_needed), list(seams.copies_until))
    assert publish.root_needed in before[0]
    assert copies.in_bundles in before[1]
    apps.get_app_config("security").ready()
    assert (seams.root_needed, seams.copies_until) == before


def test_root_keys_that_change_all_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = make()
    real = bundle.needed_roots
    monkeypatch.setattr(bundle, "needed_roots", lambda rows, root: (*real(rows, root), "file:gone"))
    with pytest.raises(KeysChanged):
        publish.publish(keys)
    assert not BundleFile.objects.exists()


# Folders


SCRIPT = """
import sys
from pathlib import Path
from security.errors import SecurityError
from security.keyring.places import FolderPlace
place = FolderPlace("small", Path(sys.argv[1]))
place.put("first.hkb", b"x" * 1000)
try:
    place.put("second.hkb", b"x" * 100_000)
except SecurityError as error:
    print(error)
print(place.list(), len(list(Path(sys.argv[1]).iterdir())), place.get("first.hkb") == b"x" * 1000)
import subprocess
subprocess.run(["mount", "-o", "remount,ro", sys.argv[1]], check=True)
for do in (lambda: place.put("third.hkb", b"x"), lambda: place.remove("first.hkb")):
    try:
        do()
    except SecurityError as error:
        print(error)
"""


def test_a_real_disk_that_is_full_and_one_that_is_read_only(tmp_path: Path) -> None:
    inside = 'mount -t tmpfs -o size=64k tmpfs "$1" && exec "$2" -c "$3" "$1"'
    words = ["unshare", "-m", "sh", "-c", inside, "sh", str(tmp_path), sys.executable, SCRIPT]
    if subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode:
        leave_out("disks can't be mounted here. Run the tests as root.")
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": f"{root / 'platform'}:{root}"}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    full, listed, written, removed = done.stdout.splitlines()
    assert "its disk is full" in full
    assert listed == "['first.hkb'] 1 True"
    assert "could not be written: its disk is read-only" in written
    assert "could not be removed: its disk is read-only" in removed


def test_files_are_whole_and_private(tmp_path: Path) -> None:
    place = FolderPlace("here", tmp_path / "a" / "b", make=True)
    assert place.list() == []
    place.put("one.hkb", b"1")
    path = tmp_path / "a" / "b"
    assert stat.S_IMODE((path / "one.hkb").stat().st_mode) == 0o600
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    (path / "taken.hkb").mkdir()
    with pytest.raises(PlaceError, match="Is a directory"):
        place.put("taken.hkb", b"2")
    with pytest.raises(PlaceError, match="could not be removed"):
        place.remove("taken.hkb")
    (path / "taken.hkb").rmdir()
    assert [each.name for each in path.iterdir()] == ["one.hkb"]
    (path / "notes.txt").write_text("not a bundle")
    for name, days in ((".old.unfinished", 2), (".new.unfinished", 0)):
        (path / name).touch()
        os.utime(path / name, (time.time() - days * 86_400,) * 2)
    assert list(place.list()) == ["one.hkb"]
    assert not (path / ".old.unfinished").exists()
    assert (path / ".new.unfinished").exists()
    place.remove("one.hkb")
    place.remove("one.hkb")
    assert place.list() == []


@pytest.mark.parametrize("name", ["../x.hkb", ".x.hkb", "x", "a/b.hkb", ""])
def test_a_name_never_leads_out_of_the_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(PlaceError, match="no name"):
        FolderPlace("here", tmp_path).put(name, b"")


def test_a_disk_that_is_not_mounted(tmp_path: Path) -> None:
    place = FolderPlace("away", tmp_path / "mnt")
    for do in (lambda: place.put("a.hkb", b""), place.list, lambda: place.get("a.hkb")):
        with pytest.raises(PlaceError, match="Is its disk mounted"):
            do()
    (tmp_path / "file").touch()
    with pytest.raises(PlaceError, match="Not a directory"):
        FolderPlace("file", tmp_path / "file").put("a.hkb", b"")


def test_where_the_settings_put_them(settings: Settings, tmp_path: Path) -> None:
    assert [(place.name, place.make) for place in publish.folders()] == [("first", True), ("second", True)]
    assert publish.folders()[0].path.is_relative_to(settings.STATE)
    given = read({"HEARTH_KEY_BUNDLES": f"near:{tmp_path},far:/mnt/far"})["HEARTH_KEY_BUNDLES"]
    settings.HEARTH = {**settings.HEARTH, "HEARTH_KEY_BUNDLES": given}
    assert publish.folders() == [FolderPlace("near", tmp_path), FolderPlace("far", Path("/mnt/far"))]


@pytest.mark.parametrize("value", ["/srv/keys", "a:relative", "A:/x", "a:/x,a:/y", "a:/x,b:/x"])
def test_settings_that_make_no_sense(value: str) -> None:
    with pytest.raises(ImproperlyConfigured, match="HEARTH_KEY_BUNDLES"):
        read({"HEARTH_KEY_BUNDLES": value})
