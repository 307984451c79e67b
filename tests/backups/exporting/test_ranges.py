"""Which bytes of an archive a header asks for."""

from __future__ import annotations

import pytest

from backups.exporting import downloads
from backups.exporting.downloads import Span, Unsatisfiable


@pytest.mark.parametrize(
    ("header", "found"),
    [
        ("bytes=0-", Span(0, 10)),
        ("bytes=3-5", Span(3, 6)),
        ("bytes=3-99", Span(3, 10)),
        ("bytes=-99", Span(0, 10)),
        ("bytes=5-3", None),
        ("bytes=-", None),
        ("bytes=0-1,3-4", None),
        ("lines=1-2", None),
        ("bytes=99999999999999999999-", None),
    ],
)
def test_ranges(header: str, found: Span | None) -> None:
    assert downloads.span(header, 10) == found


@pytest.mark.parametrize("header", ["bytes=10-", "bytes=10-12", "bytes=-0"])
def test_ranges_that_there_are_not(header: str) -> None:
    with pytest.raises(Unsatisfiable):
        downloads.span(header, 10)
