"""The page of exports, and the download: for owners alone, from any byte on, and only what is authentic."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from django.http import StreamingHttpResponse
from django.test import Client
from django.urls import reverse

from accounts.models import User
from audit.models import AuditEvent
from backups import places
from backups.engine.stores.base import Store
from backups.exporting import downloads, verbs
from backups.models import Export, RestorePoint
from tenants.models import Server
from tests.backups.exporting.exported import carry_out
from tests.cast import client_for
from tests.provisioning.fakes import ScriptedProvider

pytestmark = pytest.mark.django_db(transaction=True)
CHUNK = 2**20


def url(name: str, server: Server, *more: object) -> str:
    return reverse(name, args=[server.organisation.slug, server.pk, *more])


def read(answer: Any) -> bytes:
    """All of a download, as the web server takes it."""

    async def whole() -> bytes:
        found = cast("AsyncIterator[bytes]", cast("StreamingHttpResponse", answer).streaming_content)
        return b"".join([piece async for piece in found])

    return asyncio.run(whole())


def download(client: Client, export: Export, **headers: str) -> tuple[int, bytes]:
    address = url("download_export", export.restore.source, export.pk)
    answer = client.get(address, headers=headers)
    return answer.status_code, read(answer) if answer.streaming else answer.content


def test_an_owner_exports_everything_and_downloads_it(berry: Server, alice: User, provider: ScriptedProvider) -> None:
    client, address = client_for(alice), url("server_exports", berry)
    assert address in client.get(url("server_backups", berry)).content.decode()
    assert "Export everything" in client.get(address).content.decode()
    assert client.post(address, {"what": "everything"}).status_code == 302
    export = Export.objects.get()
    shown = client.get(address).content.decode()
    assert "Being made" in shown
    assert "disabled" in shown
    assert "Brought back" not in client.get(url("server_backups", berry)).content.decode()
    data = carry_out(provider, export)
    link = url("download_export", berry, export.pk)
    assert link in client.get(address).content.decode()
    head = client.head(link)
    assert (head.status_code, head["Content-Length"], head["Accept-Ranges"]) == (200, str(len(data)), "bytes")
    assert head["Content-Disposition"].startswith(f'attachment; filename="{berry.server_name}-')
    assert download(client, export) == (200, data)
    export.refresh_from_db()
    assert export.downloads == 1
    event = AuditEvent.objects.get(verb="server.export-download")
    assert (event.object_id, event.after["from"]) == (str(berry.pk), 0)


def test_a_download_that_broke_off_goes_on(berry: Server, alice: User, provider: ScriptedProvider) -> None:
    export = verbs.export(alice, server=berry, what="everything")
    data, client = carry_out(provider, export), client_for(alice)
    tag = client.head(url("download_export", berry, export.pk))["ETag"]
    for begin in (1, CHUNK - 1, CHUNK, 2 * CHUNK + 7, len(data) - 1):
        assert download(client, export, Range=f"bytes={begin}-", If_Range=tag) == (206, data[begin:])
    assert download(client, export, Range="bytes=10-19") == (206, data[10:20])
    assert download(client, export, Range="bytes=-5") == (206, data[-5:])
    assert download(client, export, Range=f"bytes={len(data)}-")[0] == 416
    assert download(client, export, Range="bytes=5-", If_Range='"another"') == (200, data)


def test_an_archive_that_was_changed_is_not_given(
    berry: Server, alice: User, provider: ScriptedProvider, tmp_path: Path
) -> None:
    export = verbs.export(alice, server=berry, what="everything")
    carry_out(provider, export)
    (path,) = (tmp_path / str(berry.pk)).rglob("*.tar")
    whole = path.read_bytes()
    path.chmod(0o600)
    client = client_for(alice)
    for wrong in (whole[:-1] + b"?", whole[:-CHUNK], whole[:200] + b"?" + whole[201:], b""):
        path.write_bytes(wrong)
        answer = client.get(url("download_export", berry, export.pk), headers={"Range": "bytes=5-"})
        assert (answer.status_code, answer["Content-Type"]) == (503, "text/plain; charset=utf-8")
        assert int(answer["Retry-After"]) > 0
        assert answer.content.decode().startswith("The archive can't be read just now. Try again"), "and nothing else"
    assert not AuditEvent.objects.filter(verb="server.export-download").exists()


def test_few_downloads_at_once(berry: Server, alice: User, provider: ScriptedProvider) -> None:
    export = verbs.export(alice, server=berry, what="everything")
    data, client = carry_out(provider, export), client_for(alice)
    link = url("download_export", berry, export.pk)
    going = [client.get(link) for _ in range(downloads.MOST_OF_ONE)]
    answer = client.get(link)
    assert (answer.status_code, int(answer["Retry-After"]) > 0) == (503, True)
    assert b"As many downloads" in answer.content
    assert read(going.pop()) == data
    assert download(client, export) == (200, data), "the place of one that ended is free"
    for each in going:
        each.close()  # whose client hung up before it took anything
    until = time.monotonic() + 60
    while downloads._ROOM._given and time.monotonic() < until:
        time.sleep(0.01)
    going = [client.get(link) for _ in range(downloads.MOST_OF_ONE)]
    assert [read(each) for each in going] == [data] * downloads.MOST_OF_ONE


def test_a_hung_up_download_keeps_nobody_waiting(
    berry: Server, alice: User, provider: ScriptedProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    export = verbs.export(alice, server=berry, what="everything")
    carry_out(provider, export)
    answers, closed, real = threading.Event(), threading.Event(), places.opened

    @contextlib.contextmanager
    def slow(*args: Any, **more: Any) -> Iterator[Store]:
        with real(*args, **more) as store:
            try:
                yield store
            finally:
                assert answers.wait(60)  # as a bucket does that waits for what is on its way
                closed.set()

    monkeypatch.setattr(places, "opened", slow)
    answer = client_for(alice).get(url("download_export", berry, export.pk))

    async def hang_up() -> None:
        coming = cast("StreamingHttpResponse", answer).streaming_content
        async for _ in cast("AsyncIterator[bytes]", coming):
            break
        answer.close()

    asyncio.run(hang_up())
    assert not closed.is_set()
    answers.set()
    assert closed.wait(60)


def test_what_is_older_can_be_exported_when_the_newest_is_damaged(berry: Server, alice: User) -> None:
    newest = RestorePoint.objects.latest("at")
    RestorePoint.objects.filter(pk=newest.pk).update(state="damaged", damage="A file is not what was written.")
    client, address = client_for(alice), url("server_exports", berry)
    shown = client.get(address).content.decode()
    assert "is damaged: A file is not" in shown
    assert "Export everything" in shown
    assert shown.count('<details class="disclosure" open>') == 3
    older = RestorePoint.objects.earliest("at")
    assert client.post(address, {"what": "everything"}).status_code == 200
    assert client.post(address, {"what": "everything", "point": older.identity}).status_code == 302
    assert Export.objects.get().restore.point == older.identity


def test_whoever_is_no_owner_gets_nothing(
    berry: Server, alice: User, bob: User, charlie: User, provider: ScriptedProvider
) -> None:
    export = verbs.export(alice, server=berry, what="everything")
    carry_out(provider, export, b"archive")
    link = url("download_export", berry, export.pk)
    for user, status in ((bob, 403), (charlie, 404)):
        client = client_for(user)
        assert client.get(link).status_code == status
        assert client.get(url("server_exports", berry)).status_code == status
        assert client.post(url("server_exports", berry), {"what": "everything"}).status_code == status
        assert client.post(url("remove_export", berry, export.pk)).status_code == status
    assert Export.objects.get().can_be_downloaded()
    owner = client_for(alice)
    assert owner.get(url("download_export", berry, berry.pk)).status_code == 404
    assert owner.post(url("remove_export", berry, export.pk)).status_code == 302
    assert owner.get(link).status_code == 404


def test_the_page_says_why_something_is_refused(berry: Server, alice: User) -> None:
    client, address = client_for(alice), url("server_exports", berry)
    assert "room&#x27;s id" in client.post(address, {"what": "room", "room": "kitchen"}).content.decode()
    assert "Choose 1 to" in client.post(address, {"what": "tables"}).content.decode()
    wrong = {"what": "tables", "tables": ["users"], "others": "a-b"}
    assert "no name of a table" in client.post(address, wrong).content.decode()
    assert "Give day and time" in client.post(address, {"what": "everything", "moment": "soon"}).content.decode()
    assert client.post(address, {"what": "nonsense"}).status_code == 200
    assert not Export.objects.exists()
    said = {"what": "tables", "tables": ["users"], "others": "state_events, rooms"}
    assert client.post(address, said).status_code == 302
    assert Export.objects.get().tables == ["users", "state_events", "rooms"]
