"""What an export keeps beside its work, and what it says of a store that is away."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from backups.engine.progress import Progress
from backups.engine.restore import plain, sealed
from backups.engine.restore.errors import RestoreError
from backups.engine.restore.export import Export, Exporter
from backups.engine.restore.request import Request
from backups.engine.settings import FolderStoreAt
from backups.engine.stores.base import Stored, StoreError
from backups.engine.stores.folder import FolderStore
from tests.backups.keys import MemoryKeys

ARCHIVE = str(uuid.uuid4())


class Away(FolderStore):
    """A store that does not answer, or does not let us in."""

    retry = True

    def listing(self, prefix: str = "") -> Iterator[Stored]:  # noqa: ARG002 (a store's method)
        code = "StoreAway" if self.retry else "StoreDenied"
        raise StoreError("The store does not let us.", code=code, retry=self.retry)


@pytest.fixture
def exporter(tmp_path: Path) -> Exporter:
    request = Request(
        organisation="o",
        server="s",
        store=FolderStoreAt(path=str(tmp_path / "store")),
        data=str(tmp_path / "data"),
        work=str(tmp_path / "work"),
    )
    wanted = Export(request=request, into=str(tmp_path / "export"), what="everything", archive=ARCHIVE)
    store, keys = Away("here", tmp_path / "store", make=True), MemoryKeys()
    return Exporter(wanted, store, keys.open, Progress(), threading.Event(), keys=keys)


@pytest.mark.parametrize(("retry", "code"), [(True, "StoreAway"), (False, "StoreDenied")])
def test_what_passes_by_itself_is_told(
    exporter: Exporter, monkeypatch: pytest.MonkeyPatch, retry: bool, code: str
) -> None:
    monkeypatch.setattr(Away, "retry", retry)
    with pytest.raises(RestoreError, match="does not let us") as refused:
        exporter.run()
    assert (refused.value.retry, refused.value.code) == (retry, code)


def test_two_at_once_leave_each_others_files(exporter: Exporter, tmp_path: Path) -> None:
    kept = tmp_path / "export" / "media.csv"
    kept.parent.mkdir()
    kept.write_text("of the other")
    with sealed.alone(tmp_path / "work"), pytest.raises(RestoreError, match="left alone") as refused:
        exporter.run()
    assert (refused.value.code, refused.value.retry, kept.exists()) == ("Busy", True, True)


def test_a_note_is_of_one_archive(tmp_path: Path) -> None:
    work = tmp_path / "work"
    assert sealed.noted(work, ARCHIVE) is None
    sealed.note(work, ARCHIVE, {"object": "exports/x.tar", "stored": 5})
    assert sealed.noted(work, ARCHIVE) == {"object": "exports/x.tar", "stored": 5}
    assert sealed.noted(work, str(uuid.uuid4())) is None
    work.with_name("work.sealed").write_bytes(b"{")
    assert sealed.noted(work, ARCHIVE) is None


@pytest.mark.parametrize("name", ["=1+1", "+1", "-1", "@SUM(1)", "\t=1", "\r=1", "\n=1"])
def test_no_cell_is_a_formula(name: str) -> None:
    assert plain.cell(name) == f"'{name}"
    assert plain.cell(f"a{name}") == f"a{name}"
