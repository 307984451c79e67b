"""An exchange that is cut off anywhere ends as a whole. The files are real; an error stands for a process that ends."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from provisioning.providers.base import ProviderError, Recovering
from provisioning.providers.local.agent import exchange
from provisioning.providers.local.agent.files import UnitFile, load_units
from provisioning.providers.local.agent.fleet import Fleet
from provisioning.providers.local.agent.folder import Folder
from provisioning.providers.local.agent.machine import Machine
from provisioning.providers.local.agent.server import ManagedServer
from provisioning.providers.local.paths import runtime_dir

SERVER, INSTANCE = "00000000-0000-4000-8000-000000000001", "00000000-0000-4000-8000-000000000002"


class Killed(BaseException):
    """The process ends here."""


class Place:
    """A server and its instance on a disk."""

    def __init__(self, state: Path) -> None:
        self.machine = Machine.survey(state, state / "environments")
        for number, (key, of) in enumerate(((SERVER, ""), (INSTANCE, SERVER))):
            user = None if os.geteuid() else 70_001 + number
            unit = UnitFile(key, "a", "1", 1, 2, user, user, f"of-{key[-1]}", instance_of=of)
            folder = Folder(self.machine, unit)
            folder.make()
            for name in exchange.NAMES:
                (folder.path / name).mkdir(exist_ok=True)
                (folder.path / name / "whose").write_text(key)
                if user is not None:
                    os.chown(folder.path / name, user, user)
            folder.save()

    def folders(self) -> tuple[Folder, Folder]:
        """Both, as an agent that has just started reads them."""
        units = {unit.server_id: unit for unit in load_units(self.machine.servers)}
        return Folder(self.machine, units[SERVER]), Folder(self.machine, units[INSTANCE])

    def holds(self) -> dict[str, set[str]]:
        """Whose things each has: data, media, user and password."""
        found = {}
        for folder in self.folders():
            things = {(folder.path / name / "whose").read_text() for name in exchange.NAMES}
            owners = {(folder.path / name).stat().st_uid for name in exchange.NAMES}
            assert owners == {os.geteuid() if folder.unit.uid is None else folder.unit.uid}
            assert not list(folder.path.glob(".coming-*"))
            found[folder.unit.server_id] = things | {f"{SERVER[:-1]}{folder.unit.superuser_password[-1]}"}
        return found


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    found = Place(tmp_path / "state")
    yield found
    shutil.rmtree(runtime_dir(tmp_path / "state"), ignore_errors=True)


def _dies_at(monkeypatch: pytest.MonkeyPatch, number: int) -> Callable[[], int]:
    """Let the process end before its change of that number to the disk; return how many changes there were."""
    done = 0

    def counted(plain: Callable[..., Any]) -> Callable[..., Any]:
        def change(*values: Any, **more: Any) -> Any:
            nonlocal done
            if done == number:
                raise Killed
            done += 1
            return plain(*values, **more)

        return change

    monkeypatch.setattr(Path, "rename", counted(Path.rename))
    monkeypatch.setattr(UnitFile, "save", counted(UnitFile.save))
    return lambda: done


def _exchange(place: Place, *, restored: bool) -> None:
    server, instance = place.folders()
    exchange.begin(server, instance, restored=restored)
    exchange.finish(server, instance)


def test_there_and_back(place: Place) -> None:
    own = place.holds()
    assert own == {SERVER: {SERVER}, INSTANCE: {INSTANCE}}
    _exchange(place, restored=True)
    assert place.holds() == {SERVER: {INSTANCE}, INSTANCE: {SERVER}}
    assert place.folders()[1].unit.exchanged
    _exchange(place, restored=False)
    assert place.holds() == own
    assert not place.folders()[1].unit.exchanged


def test_cut_off_anywhere_it_ends_as_a_whole(place: Place) -> None:
    own, other = {SERVER: {SERVER}, INSTANCE: {INSTANCE}}, {SERVER: {INSTANCE}, INSTANCE: {SERVER}}
    restored, cuts = True, 0
    while True:
        with pytest.MonkeyPatch.context() as patch:
            done = _dies_at(patch, cuts)
            with contextlib.suppress(Killed):
                _exchange(place, restored=restored)
            if done() < cuts:
                break
        server, instance = place.folders()
        begun = bool(server.unit.exchanging) or instance.unit.exchanged is restored
        assert begun is (cuts > 0)
        if server.unit.exchanging:
            _cut_again(place)
            server, instance = place.folders()
            exchange.finish(server, instance)
        if begun:
            assert place.holds() == (other if restored else own)
            restored = not restored
        cuts += 1
    assert cuts > 8


def _cut_again(place: Place) -> None:
    """The agent that goes on with it ends in the middle too."""
    with pytest.MonkeyPatch.context() as patch:
        _dies_at(patch, 1)
        server, instance = place.folders()
        with contextlib.suppress(Killed):
            exchange.finish(server, instance)


def test_what_is_no_folder_is_left_alone(place: Place) -> None:
    server, instance = place.folders()
    shutil.rmtree(instance.path / "media")
    (instance.path / "media").symlink_to(place.machine.state)
    with pytest.raises(ProviderError, match="Nothing was changed"):
        exchange.begin(server, instance, restored=True)
    assert not json.loads((server.path / "unit.json").read_text())["exchanging"]


@pytest.mark.parametrize("last", [False, True])
def test_a_disk_without_room_leaves_what_is_written_as_what_counts(place: Place, *, last: bool) -> None:
    server, instance = place.folders()
    plain = server.save

    def full() -> None:
        if bool(server.unit.exchanging) is not last:
            raise OSError(errno.ENOSPC, "")
        plain()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(server, "save", full)
        with contextlib.suppress(OSError):
            exchange.begin(server, instance, restored=True)
            exchange.finish(server, instance)
    assert bool(server.unit.exchanging) is last
    assert server.unit.exchanging == place.folders()[0].unit.exchanging
    if last:
        exchange.finish(server, instance)
        assert place.holds() == {SERVER: {INSTANCE}, INSTANCE: {SERVER}}


def test_what_is_written_down_is_told_as_made(place: Place) -> None:
    def told() -> bool | None:
        fleet = Fleet(place.machine)
        for folder in place.folders():
            fleet.servers[folder.unit.server_id] = ManagedServer(place.machine, folder.unit)
        found: bool | None = Recovering(**fleet.instances.recovering(INSTANCE)).exchanged
        return found

    assert Recovering(**Fleet(place.machine).instances.recovering(INSTANCE)).exchanged is None
    assert told() is False
    exchange.begin(*place.folders(), restored=True)
    assert told() is True
    exchange.finish(*place.folders())
    assert told() is True
    exchange.begin(*place.folders(), restored=False)
    assert told() is False
