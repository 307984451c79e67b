"""The verbs on a server: each raises the generation, leaves an audit event, and refuses where it makes no sense."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.utils import timezone
from pytest_django import DjangoCaptureOnCommitCallbacks, Settings

from accounts.models import User
from audit.models import AuditEvent
from tenants import releases, seams, services
from tenants.errors import OutOfDate, Refused
from tenants.models import Server
from tests.tenants.conftest import Seams

pytestmark = pytest.mark.django_db
OLDER = next(release.version for release in releases.RELEASES[1:] if release.offered)


@pytest.fixture
def server(make_server: Callable[[str], Server]) -> Server:
    return make_server("chat")


def do(verb: str, actor: Any, server: Server, **more: Any) -> Server:

    return getattr(services, verb)(actor=actor, server=server, **more)  # type: ignore[no-any-return]


SIZE = {"vcpu": 4, "memory_mb": 8192, "disk_gb": 40, "object_gb": 200}
VERBS: list[tuple[str, dict[str, Any], str]] = [
    ("restart_server", {}, "server.restart"),
    ("suspend_server", {"message": "Moving house"}, "server.suspend"),
    ("upgrade_server", {"version": OLDER}, "server.upgrade"),
    ("resize_server", SIZE, "server.resize"),
    ("delete_server", {"confirm": "chat.hearth.test"}, "server.delete"),
    ("reset_admin_password", {}, "server.password"),
]


@pytest.mark.parametrize(("verb", "more", "event"), VERBS)
def test_it_works(server: Server, alice: User, verb: str, more: dict[str, Any], event: str) -> None:
    changed = do(verb, alice, server, generation=1, **more)
    assert changed.generation == 2
    row = AuditEvent.objects.get(verb=event)
    assert (row.actor_id, row.object_id) == (alice.pk, str(server.pk))
    assert (row.before["generation"], row.after["generation"]) == (1, 2)


def test_whoever_carries_it_out_is_woken_after_the_commit(
    server: Server,
    alice: User,
    seams_of_test: Seams,
    django_capture_on_commit_callbacks: DjangoCaptureOnCommitCallbacks,
) -> None:
    with django_capture_on_commit_callbacks(execute=True):
        do("restart_server", alice, server)
        assert seams_of_test.woken == []
    assert seams_of_test.woken == [server.pk]


@pytest.mark.parametrize(("verb", "more", "event"), VERBS)
def test_a_page_that_is_out_of_date_does_nothing(
    server: Server, alice: User, verb: str, more: dict[str, Any], event: str
) -> None:
    do("restart_server", alice, server, generation=1)
    with pytest.raises(OutOfDate, match="out of date"):
        do(verb, alice, server, generation=1, **more)
    server.refresh_from_db()
    assert (server.generation, server.desired, server.password_resets) == (2, "running", 0)


@pytest.mark.parametrize(("verb", "more", "event"), VERBS)
def test_a_deleted_server_takes_no_verb_but_undelete(
    server: Server, alice: User, verb: str, more: dict[str, Any], event: str
) -> None:
    do("delete_server", alice, server, confirm=server.server_name)
    with pytest.raises(Refused, match=r"is deleted\. Nothing was changed"):
        do(verb, alice, server, **more)
    with pytest.raises(Refused, match="is deleted"):
        do("resume_server", alice, server)


def test_suspend_tells_the_message_and_resume_opens(server: Server, alice: User) -> None:
    changed = do("suspend_server", alice, server, message=" Moving \n house ")
    assert (changed.desired, changed.suspend_message) == ("suspended", "Moving house")
    with pytest.raises(Refused, match="already suspended"):
        do("suspend_server", alice, server)
    refused: list[tuple[str, dict[str, Any]]] = [
        ("restart_server", {}),
        ("upgrade_server", {"version": OLDER}),
        ("resize_server", SIZE),
        ("reset_admin_password", {}),
    ]
    for verb, more in refused:
        with pytest.raises(Refused, match="Resume it first"):
            do(verb, alice, server, **more)
    changed = do("resume_server", alice, server)
    assert (changed.desired, changed.suspend_message) == ("running", "")
    with pytest.raises(Refused, match="not suspended"):
        do("resume_server", alice, server)


def test_suspend_without_a_message_has_one_all_the_same(server: Server, alice: User) -> None:
    assert do("suspend_server", alice, server).suspend_message == "This server is suspended by its owner."
    with pytest.raises(Refused, match="201 characters"):
        do("suspend_server", alice, server, message="x" * 201)


@pytest.mark.parametrize(
    ("version", "sentence"),
    [("9.9.9", "does not offer Synapse 9.9.9"), ("", "does not offer"), ("1.98.0", "schema"), ("newest", "already on")],
)
def test_upgrade_refuses(server: Server, alice: User, version: str, sentence: str) -> None:
    wanted = releases.newest().version if version == "newest" else version
    with pytest.raises(Refused, match=sentence) as refused:
        do("upgrade_server", alice, server, version=wanted)
    assert refused.value.field == "version"
    server.refresh_from_db()
    assert (server.version, server.generation) == (releases.newest().version, 1)


@pytest.mark.parametrize("typed", ["", "chat", "CHAT.hearth.test", "chat.hearth.test.", "other.hearth.test"])
def test_delete_wants_the_name(server: Server, alice: User, typed: str) -> None:
    with pytest.raises(Refused, match=r"not the name of this server\. Nothing was deleted"):
        do("delete_server", alice, server, confirm=typed)
    server.refresh_from_db()
    assert (server.desired, server.delete_after) == ("running", None)


def test_delete_waits_for_the_grace_period(server: Server, alice: User, settings: Settings) -> None:
    settings.HEARTH = {**settings.HEARTH, "HEARTH_DELETE_GRACE_HOURS": 48}
    changed = do("delete_server", alice, server, confirm=" chat.hearth.test ")
    assert changed.desired == "deleted"
    assert changed.delete_after is not None
    assert changed.delete_requested is not None
    assert changed.delete_after - changed.delete_requested == timedelta(hours=48)
    assert changed.deleted is None


def test_undelete_brings_it_back_as_it_was(server: Server, alice: User) -> None:
    with pytest.raises(Refused, match="is not deleted"):
        do("undelete_server", alice, server)
    do("delete_server", alice, server, confirm=server.server_name)
    changed = do("undelete_server", alice, server)
    assert (changed.desired, changed.delete_after, changed.delete_requested) == ("running", None, None)
    do("suspend_server", alice, server, message="Closed")
    do("delete_server", alice, server, confirm=server.server_name)
    changed = do("undelete_server", alice, server)
    assert (changed.desired, changed.suspend_message) == ("suspended", "Closed")


@pytest.mark.parametrize("ended", ["grace", "removed", "at once"])
def test_undelete_is_refused_when_the_grace_period_has_ended(
    server: Server, alice: User, settings: Settings, ended: str
) -> None:
    if ended == "at once":
        settings.HEARTH = {**settings.HEARTH, "HEARTH_DELETE_GRACE_HOURS": 0}
    changed = do("delete_server", alice, server, confirm=server.server_name)
    if ended == "grace":
        changed.delete_after = timezone.now()
    elif ended == "removed":
        changed.deleted = timezone.now()
    changed.save()
    with pytest.raises(Refused, match="can't be brought back"):
        do("undelete_server", alice, server)


def test_a_listener_that_breaks_does_not_undo_the_verb(
    server: Server, alice: User, django_capture_on_commit_callbacks: DjangoCaptureOnCommitCallbacks
) -> None:

    def broken(server_id: object) -> None:
        raise ConnectionError("the broker is down")

    seams._wake[:] = [broken]
    with django_capture_on_commit_callbacks(execute=True):
        do("restart_server", alice, server)
    server.refresh_from_db()
    assert server.restarts == 1
