"""Catalogue and verification of a real server's backups: PostgreSQL, WAL, media, configuration."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from backups.engine import names, verify
from backups.engine.catalogue import Catalogue, NotRestorable
from tests.backups.engine.backed import Backed, backed_up
from tests.backups.engine.conftest import ORGANISATION
from tests.bench.corruption import KINDS, damage_ours

pytestmark = pytest.mark.xdist_group("backed")  # one server's backups, made once


@pytest.fixture(scope="module")
def whole() -> Iterator[Backed]:
    with backed_up() as found:
        yield found


@pytest.fixture
def backed(whole: Backed, tmp_path: Path) -> Backed:
    return whole.copy(tmp_path / "store")


def test_a_whole_store_is_found_fine(whole: Backed) -> None:
    catalogue = whole.catalogue
    report = verify.look(catalogue)

    assert report.fine, report.damage
    assert len(report.sound) == 2
    (window,) = report.windows
    assert window.points == tuple(sorted(catalogue.points))
    assert window.end > window.begin


def test_a_full_read_of_all_finds_it_fine(whole: Backed) -> None:
    report = whole.read()

    assert report.fine, report.damage
    assert report.full
    assert report.hashed
    assert report.objects > 10


def test_what_a_restore_needs(whole: Backed) -> None:
    catalogue = whole.catalogue
    first, second = sorted(catalogue.points.values(), key=lambda each: each.at)
    (window,) = catalogue.windows()

    latest = catalogue.need()
    assert latest.point.id == second.id
    assert catalogue.need(to=first.at).point.id == first.id
    assert catalogue.need(to=second.at - timedelta(milliseconds=1)).point.id == first.id
    between = catalogue.need(to=second.at - timedelta(milliseconds=1))
    assert between.media
    assert catalogue.need(point=first.id).names < between.names | {names.point(first.id)}
    for wrong in (window.begin - timedelta(seconds=1), window.end + timedelta(days=1)):
        with pytest.raises(NotRestorable, match="What can be"):
            catalogue.need(to=wrong)


def test_damage_to_one_base_backup_leaves_the_other(backed: Backed) -> None:
    first, second = sorted(backed.catalogue.points.values(), key=lambda each: each.at)
    backed.damage(second.base.name)

    report = backed.read()

    (damage,) = report.damage
    assert (damage.name, damage.kind, damage.points) == (second.base.name, "content", (second.id,))
    assert report.sound == (first.id,)
    (window,) = report.windows
    assert (window.begin, window.points) == (first.at, (first.id,))


def test_lost_wal_shortens_the_window_honestly(backed: Backed) -> None:
    catalogue = backed.catalogue
    first, second = sorted(catalogue.points.values(), key=lambda each: each.at)
    needed = verify.needed(catalogue, first) | verify.needed(catalogue, second)
    between = [each.name for each in catalogue.need(to=second.at - timedelta(milliseconds=1)).wal]
    lost = next(name for name in between if name not in needed)
    backed.store.delete([lost])

    report = verify.look(backed.catalogue)

    assert [each.name for each in report.damage] == [lost]
    assert report.hit == ()
    assert [each.points for each in report.windows] == [(first.id,), (second.id,)]
    assert report.windows[0].end < second.at


def test_a_damaged_file_hits_the_points_whose_media_need_it(backed: Backed) -> None:
    catalogue = backed.catalogue
    first, second = sorted(catalogue.points.values(), key=lambda each: each.at)
    only_second = verify.media_of(catalogue, second.media) - verify.media_of(catalogue, first.media)
    name = next(each for each in sorted(only_second) if names.is_contents(each))
    backed.damage(name)

    report = backed.read()

    assert [(each.name, each.points) for each in report.damage] == [(name, (second.id,))]
    assert len(report.windows) == 1


def test_a_manifest_that_others_wrote_is_found_by_its_seal(backed: Backed) -> None:
    first, *_ = sorted(backed.catalogue.points)
    path = backed.folder / names.point(first)
    path.write_bytes(path.read_bytes().replace(b'"kind":"first"', b'"kind":"first!"'))

    report = backed.read()

    assert [(each.name, each.kind, each.points) for each in report.damage] == [(names.point(first), "seal", (first,))]


def test_a_restore_point_that_somebody_removed_is_missed_by_who_knows_it(backed: Backed) -> None:
    catalogue = backed.catalogue
    first, second = sorted(catalogue.points)
    line = catalogue.points[first].line
    last = catalogue.moments[line][-1]
    backed.store.delete([names.point(second), names.moment(line, last.id)])
    expected = verify.Expected(points=frozenset({first, second}), moments={line: last.number})

    report = verify.look(backed.catalogue, expected=expected)

    assert {each.name for each in report.damage} == {
        names.point(second),
        f"{names.LINES}{line}/moments/{last.number}-to-{last.number}",
    }
    assert report.hit == (second,)


def test_another_servers_objects_are_not_taken(backed: Backed) -> None:
    found = Catalogue.read(backed.store, ORGANISATION, "somebody-elses")

    assert not found.points
    assert found.damaged


@pytest.mark.repeated
def test_every_random_fault_is_found(backed: Backed) -> None:
    """1,000 of them are `make bench BENCH=corruption`."""
    faults = int(os.environ.get("CORRUPTION_FAULTS", "12"))

    found = damage_ours(backed, faults, random.Random())

    assert found["found_share"] == 1.0
    assert found["accepted"] == 0
    assert found["faults"] == dict.fromkeys(KINDS, faults // len(KINDS))
