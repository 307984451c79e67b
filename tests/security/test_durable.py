"""A file that is replaced is the old one or the new one, whatever happens meanwhile."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from security.durable import replace_file


@pytest.mark.parametrize("sync", [True, False])
@pytest.mark.parametrize("gid", [None, os.getgid()])
def test_a_file_is_replaced_as_a_whole(tmp_path: Path, gid: int | None, sync: bool) -> None:
    path = tmp_path / "state"
    path.write_bytes(b"before, and longer")
    replace_file(path, b"after", mode=0o640, gid=gid, sync=sync)
    assert path.read_bytes() == b"after"
    assert path.stat().st_mode & 0o777 == 0o640
    assert [each.name for each in tmp_path.iterdir()] == ["state"]


def test_what_can_not_be_put_in_place_leaves_all_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "taken"
    path.mkdir()
    with pytest.raises(OSError, match="taken"):
        replace_file(path, b"after")
    assert [each.name for each in tmp_path.iterdir()] == ["taken"]
    assert path.is_dir()
