"""Exports: asked for by an owner, made beside the server, kept for a while, and gone."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.utils import timezone

from accounts.models import User
from audit.models import AuditEvent
from backups import places
from backups.engine.stores.base import Store, StoreError
from backups.exporting import upkeep, verbs
from backups.models import Export, Line, Restore, RestorePoint
from backups.restoring import choices
from backups.restoring import upkeep as restoring
from backups.restoring import verbs as restores
from provisioning import services
from provisioning.models import Operation, Region
from provisioning.providers.base import Recovering
from security.models import UnwrapGrant
from tenants.errors import Refused
from tenants.models import Server
from tests.backups.exporting.exported import carry_out, objects, seal
from tests.backups.restoring.restorable import hour_ago, log, look
from tests.provisioning.fakes import ScriptedProvider

pytestmark = pytest.mark.django_db(transaction=True)
ROOM = "!abcdef:example.org"


def over(export: Export) -> None:
    """Let its time be over, and all go that then goes."""
    Export.objects.filter(pk=export.pk).update(keep_until=timezone.now() - timedelta(seconds=1))
    upkeep.sweep()
    export.refresh_from_db()


def test_everything_is_exported_beside_the_server(
    berry: Server, provider: ScriptedProvider, alice: User, tmp_path: Path
) -> None:
    export = verbs.export(alice, server=berry, what="everything")
    operation = look(export.restore.operation)
    assert (operation.state, provider.calls) == ("queued", ["recovering", "recover"]), "the server is not even asked"
    recovery = provider.recoveries[str(export.restore.instance)]
    assert recovery.export == {
        "what": "everything", "room": "", "tables": [], "format": "csv", "archive": str(export.pk)
    }  # fmt: skip
    assert not {"to", "point"} & set(recovery.request), "the latest that the store has"
    grant = UnwrapGrant.objects.get(revoked_at=None)
    assert (grant.source, grant.target) == (berry.pk, berry.pk)

    provider.recovered[str(export.restore.instance)] = Recovering("running", "archive", 500, 2000, seconds_left=200)
    look(operation)
    assert "are written, about 3 minutes left" in operation.note
    provider.calls.clear()
    carry_out(provider, export)
    assert provider.calls[-2:] == ["cancel_recovery", "remove"], "what it was made with is gone"
    assert (export.files, export.ready is not None, export.can_be_downloaded()) == (3, True, True)
    assert "3 files are in the archive" in log(operation)
    assert UnwrapGrant.objects.filter(revoked_at=None).count() == 0
    assert Restore.objects.get().holds == "gone"
    said = list(AuditEvent.objects.filter(verb__startswith="server.export").values_list("verb", flat=True))
    assert sorted(said) == ["server.export", "server.export-ready"]

    restoring.tidy()
    upkeep.sweep()
    assert len(objects(tmp_path, export)) == 1
    over(export)
    assert (objects(tmp_path, export), export.removed is not None) == ([], True)


def test_of_a_moment_a_point_a_room_and_tables(berry: Server, provider: ScriptedProvider, alice: User) -> None:
    point = RestorePoint.objects.latest("at").identity
    tables: dict[str, Any] = {"what": "tables", "tables": ["users", "rooms", "users"], "format": "jsonl"}
    wanted = hour_ago()
    for said, told in (
        ({"what": "room", "room": ROOM, "moment": wanted}, {"room": ROOM, "what": "room"}),
        ({"point": point, **tables}, {"tables": ["users", "rooms"], "format": "jsonl"}),
    ):
        export = verbs.export(alice, server=berry, **said)
        carry_out(provider, export)
        recovery = provider.recoveries[str(export.restore.instance)]
        assert told.items() <= dict(recovery.export).items()
        assert recovery.request.get("point", "") == said.get("point", "")
        assert recovery.request.get("to") == (wanted.isoformat() if "moment" in said else None)


def test_what_makes_no_sense_is_refused(berry: Server, alice: User) -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"what": "all"}, "Choose what"),
        ({"what": "room", "room": "kitchen"}, "room's id"),
        ({"what": "room", "room": "!a b:c"}, "room's id"),
        ({"what": "tables"}, "Choose 1 to"),
        ({"what": "tables", "tables": ["users; DROP TABLE users"]}, "no name of a table"),
        ({"what": "tables", "tables": ["users"], "format": "xls"}, "Choose what"),
        ({"what": "everything", "point": "20260101t000000z-00000000"}, "no such restore point"),
        ({"what": "everything", "moment": timezone.now() + timedelta(days=1)}, "can't be restored"),
    ]
    for said, why in wrong:
        with pytest.raises(Refused, match=why):
            verbs.export(alice, server=berry, **said)
    assert not Operation.objects.filter(kind="export").exists()


def test_where_nothing_can_be_exported_that_is_said(berry: Server, alice: User) -> None:
    Region.objects.update(provider=Region.Provider.KUBERNETES)
    with pytest.raises(Refused, match="Ask support"):
        verbs.export(alice, server=berry, what="everything")
    Region.objects.update(provider=Region.Provider.LOCAL)
    Server.objects.update(desired=Server.Desired.DELETED)
    with pytest.raises(Refused, match="Bring it back first"):
        verbs.export(alice, server=berry, what="everything")
    Server.objects.update(desired=Server.Desired.RUNNING)
    Line.objects.all().delete()
    RestorePoint.objects.all().delete()
    with pytest.raises(Refused, match="no restore point yet"):
        verbs.export(alice, server=berry, what="everything")


def test_one_at_a_time_and_three_are_kept(berry: Server, provider: ScriptedProvider, alice: User) -> None:
    made = []
    for _ in range(verbs.MOST_KEPT):
        made.append(verbs.export(alice, server=berry, what="everything"))
        with pytest.raises(Refused, match="Something else is being done"):
            restores.restore(alice, server=berry, mode="beside", moment=hour_ago())
        carry_out(provider, made[-1], b"archive")
    with pytest.raises(Refused, match="kept already"):
        verbs.export(alice, server=berry, what="everything")
    verbs.remove(alice, export=made[0])
    assert not Export.objects.get(pk=made[0].pk).can_be_downloaded()
    with pytest.raises(Refused, match="removed already"):
        verbs.remove(alice, export=made[0])
    upkeep.sweep()
    verbs.export(alice, server=berry, what="everything")
    copies = Restore.objects.exclude(mode="export")
    assert not copies.exists(), "exports are no copies that one could look into"


def test_a_cancelled_export_leaves_nothing(
    berry: Server, provider: ScriptedProvider, alice: User, tmp_path: Path
) -> None:
    export = verbs.export(alice, server=berry, what="everything")
    operation = look(export.restore.operation)
    seal(export, b"of an engine that was just ready")
    services.cancel_operation(alice, operation=operation)
    upkeep.sweep()
    assert len(objects(tmp_path, export)) == 1, "its engine may still be writing"
    drop = Operation.objects.get(kind="drop")
    assert look(drop).state == "succeeded", drop.error
    upkeep.sweep()
    export.refresh_from_db()
    assert (objects(tmp_path, export), export.removed is not None, export.ready) == ([], True, None)
    assert UnwrapGrant.objects.filter(revoked_at=None).count() == 0


def test_a_failed_one_is_tried_again_within_a_day(berry: Server, provider: ScriptedProvider, alice: User) -> None:
    export = verbs.export(alice, server=berry, what="tables", tables=["none"])
    operation = look(export.restore.operation)
    text = "There is no table “none” in this backup. Nothing was exported."
    provider.recovered[str(export.restore.instance)] = Recovering("failed", code="BadRequest", text=text)
    look(operation)
    assert (operation.state, operation.error) == ("failed", text)
    export.refresh_from_db()
    assert export.keep_until is not None
    assert export.keep_until > timezone.now() + timedelta(hours=23)
    assert not export.can_be_downloaded()
    provider.recovered.clear()
    services.retry_operation(alice, operation=operation)
    carry_out(provider, export, b"archive")
    assert export.can_be_downloaded()


def test_those_that_failed_do_not_count(berry: Server, provider: ScriptedProvider, alice: User) -> None:
    failed = []
    for _ in range(verbs.MOST_KEPT):
        failed.append(verbs.export(alice, server=berry, what="tables", tables=["none"]))
        operation = look(failed[-1].restore.operation)
        said = Recovering("failed", code="BadRequest", text="There is no such table.")
        provider.recovered[str(failed[-1].restore.instance)] = said
        assert look(operation).state == "failed"
    last = verbs.export(alice, server=berry, what="tables", tables=["users"])
    carry_out(provider, last, b"archive")
    for _ in failed:
        restoring.tidy()  # one at a time, as with everything that is done with a server
        drop = Operation.objects.filter(kind="drop").latest("created")
        assert look(drop).state == "succeeded", drop.error
    assert set(Restore.objects.values_list("holds", flat=True)) == {"gone"}
    assert Export.objects.get(pk=last.pk).can_be_downloaded()


def test_how_long_it_takes_is_told_by_exports_of_everything(
    berry: Server, provider: ScriptedProvider, alice: User
) -> None:
    speeds = {"everything": 1000, "tables": 1}
    for what, size in speeds.items():
        export = verbs.export(alice, server=berry, what=what, tables=["users"])
        carry_out(provider, export, b"archive")
        told = {"seconds": 10, "total_bytes": size * 10, "begun": timezone.now()}
        Restore.objects.filter(pk=export.pk).update(**told)
    assert choices.estimate(berry.region, 5000, exports=True) == 5
    assert choices.estimate(berry.region, 5000) is None, "nothing was restored"


def test_a_store_that_fails_is_asked_once_and_keeps_others_waiting_no_longer(
    berry: Server, provider: ScriptedProvider, alice: User, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    for _ in range(2):
        made.append(verbs.export(alice, server=berry, what="everything"))
        carry_out(provider, made[-1], b"archive")
    Export.objects.update(keep_until=timezone.now() - timedelta(seconds=1))
    asked = []

    @contextlib.contextmanager
    def hangs(*_: object) -> Iterator[Store]:
        asked.append(upkeep.sweep())  # what the next worker does meanwhile
        raise StoreError("It does not answer.", code="StoreAway")
        yield

    with monkeypatch.context() as patch:
        patch.setattr(places, "opened", hangs)
        assert upkeep.sweep() == 0
        assert upkeep.sweep() == 0
    assert asked == [0], "one worker, one export: the others wait for an hour"
    assert not any(export.can_be_downloaded() for export in Export.objects.all())
    Export.objects.update(keep_until=timezone.now() - timedelta(seconds=1))
    assert upkeep.sweep() == 2
    assert [objects(tmp_path, export) for export in made] == [[], []]


def test_one_that_can_not_be_removed_keeps_no_other(
    berry: Server, provider: ScriptedProvider, alice: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(2):
        carry_out(provider, verbs.export(alice, server=berry, what="everything"), b"archive")
    Export.objects.update(keep_until=timezone.now() - timedelta(seconds=1))
    faults, real = [StoreError("It is locked.", code="StoreDenied", retry=False)], places.opened

    def opened(*args: Any, **more: Any) -> Any:
        if faults:
            raise faults.pop()
        return real(*args, **more)

    monkeypatch.setattr(places, "opened", opened)
    assert upkeep.sweep() == 1
    assert Export.objects.filter(removed=None, keep_until__gt=timezone.now()).count() == 1


def test_a_store_that_is_away_is_swept_later(
    berry: Server, provider: ScriptedProvider, alice: User, tmp_path: Path
) -> None:
    export = verbs.export(alice, server=berry, what="everything")
    carry_out(provider, export, b"archive")
    there = tmp_path / str(berry.pk)
    there.rename(tmp_path / "away")
    over(export)
    assert (export.removed, export.can_be_downloaded()) == (None, False)
    (tmp_path / "away").rename(there)
    over(export)
    assert (objects(tmp_path, export), export.removed is not None) == ([], True)
