"""Which way a server may go between versions."""

from __future__ import annotations

import pytest

from tenants import releases
from tenants.releases import RELEASES, Release, ReleaseRefused, check_upgrade, find, newest

OFFERED = [release.version for release in RELEASES if release.offered]


def test_it_works() -> None:
    assert newest() == RELEASES[0]
    assert find(newest().version) == newest()
    check_upgrade(OFFERED[-1], newest().version)


def test_a_version_that_does_not_exist_is_refused_with_the_ones_that_do() -> None:
    with pytest.raises(ReleaseRefused, match=r"does not offer Synapse 9\.9\.9\. Choose one of"):
        check_upgrade(newest().version, "9.9.9")


def test_the_same_version_is_no_upgrade() -> None:
    with pytest.raises(ReleaseRefused, match="already runs"):
        check_upgrade(newest().version, newest().version)


def test_down_is_fine_while_the_older_one_can_read_the_database() -> None:
    check_upgrade(newest().version, OFFERED[-1])


def test_down_across_a_schema_change_is_refused_with_the_reason() -> None:
    with pytest.raises(
        ReleaseRefused, match=r"needs schema 84 or later, and 1\.98\.0 knows only 83.*Nothing was changed"
    ):
        check_upgrade(newest().version, "1.98.0")


def test_down_across_a_schema_change_between_offered_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = (Release("1.200.0", schema=100, compat=98), Release("1.199.0", schema=97, compat=84))
    monkeypatch.setattr(releases, "RELEASES", pair)
    check_upgrade("1.199.0", "1.200.0")
    with pytest.raises(ReleaseRefused, match=r"can't go back.*restore a backup"):
        check_upgrade("1.200.0", "1.199.0")


def test_newest_comes_first() -> None:
    numbers = [tuple(map(int, release.version.split("."))) for release in RELEASES]
    assert numbers == sorted(numbers, reverse=True)
