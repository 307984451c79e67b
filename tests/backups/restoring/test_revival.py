"""A deleted server comes back with its identity, empty, and what is kept of it is restored into it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest
from django.core.management import CommandError, call_command
from django.utils import timezone

from accounts.models import User
from audit.models import AuditEvent
from backups.engine import configuration, names
from backups.engine.manifest import Point
from backups.engine.objects import FILES, Vault
from backups.engine.stores.folder import FolderStore
from backups.models import RestorePoint, Store
from backups.restoring import verbs
from provisioning import secrets, services
from provisioning.models import Operation, ServerSecret
from provisioning.providers.local.keys import new_signing_key, verify_key
from security.datakeys import services as datakeys
from security.models import UnwrapGrant
from security.streams import DataKey
from tenants.models import Server
from tests.backups.restoring.restorable import bring_back, look, settled
from tests.provisioning.fakes import ScriptedProvider

pytestmark = pytest.mark.django_db(transaction=True)
Points = Callable[..., Point]


@pytest.fixture
def final(berry: Server, point: Points, tmp_path: Path) -> RestorePoint:
    """The newest restore point, with the server's signing key in a real store."""
    Store.objects.update(folder=str(tmp_path))
    row = RestorePoint.objects.latest("at")
    line = str(ServerSecret.objects.get(server=berry, name="signing_key").value)
    (tmp_path / "key").write_text(f"{line}\n")
    store = FolderStore("here", tmp_path / str(berry.pk), make=True)
    vault = Vault(store=store, organisation=str(berry.organisation_id), server=str(berry.pk))
    manifest = point(berry, at=row.at, signing_key_id=verify_key(line)[0])
    name = names.configuration(manifest.id)
    opened = datakeys.fresh(berry.pk, "backup.configuration", name)
    with opened.key as key:
        data_key = DataKey(opened.id, bytes(key.value))
    packed = configuration.collect({"signing.key": str(tmp_path / "key")})
    ref = vault.put(name, packed, data_key, FILES, manifest.id)
    base = msgspec.structs.replace(manifest.base, name=names.base(manifest.id))
    manifest = msgspec.structs.replace(manifest, configuration=ref, base=base)
    store.put(names.point(manifest.id), [msgspec.json.encode(manifest)])
    RestorePoint.objects.filter(pk=row.pk).update(identity=manifest.id, keep_until=timezone.now() + timedelta(days=30))
    return RestorePoint.objects.get(pk=row.pk)


def delete(server: Server) -> None:
    wanted = {"desired": "deleted", "delete_after": timezone.now(), "generation": server.generation + 1}
    Server.objects.filter(pk=server.pk).update(**wanted)
    operation = services.reconcile(server.pk)
    assert operation is not None
    operation.steps.filter(name="final").update(state="done")
    look(operation)
    server.refresh_from_db()
    assert server.deleted


def test_it_comes_back_under_its_own_key_and_is_restored(
    berry: Server, final: RestorePoint, provider: ScriptedProvider, alice: User
) -> None:
    line = str(ServerSecret.objects.get(server=berry, name="signing_key").value)
    delete(berry)
    assert not ServerSecret.objects.exists()
    almost_over = timezone.now() + timedelta(hours=1)
    RestorePoint.objects.update(keep_until=almost_over)
    call_command("backups", "revive", str(berry.pk))
    later = RestorePoint.objects.filter(pk=final.pk, keep_until__gt=almost_over + timedelta(days=1))
    assert later.exists(), "there is time to restore it"
    berry.refresh_from_db()
    assert (berry.deleted, berry.desired) == (None, "running")
    assert AuditEvent.objects.filter(verb="server.revive").exists()
    assert UnwrapGrant.objects.filter(revoked_at=None).count() == 0
    made = services.reconcile(berry.pk) or berry.operations.get(kind="create", state="queued")
    assert look(made).state == "succeeded", made.error
    assert provider.specs[str(berry.pk)].secrets["signing_key"] == line

    provider.known_since = {"locked": [], "devices": [], "sequences": {"events_stream_seq": 3}}
    row = verbs.restore(alice, server=berry, mode="switch", point=final.identity, confirm=berry.server_name)
    bring_back(provider, row)
    found = settled(provider, row)
    assert found == {"sessions": "keep", "since": {"sequences": {"events_stream_seq": 3}}}, "an empty one knows nobody"
    Operation.objects.filter(pk=row.pk).update(state="failed")  # it did not answer with its data
    again = verbs.restore(alice, server=berry, mode="beside", point=final.identity)
    look(again.operation)
    found = settled(provider, again)
    assert found == {"sessions": "keep", "since": provider.known_since}, "by now it knows everybody"


def test_what_can_not_come_back_says_why(
    berry: Server, final: RestorePoint, provider: ScriptedProvider, make_server: Callable[..., Server], tmp_path: Path
) -> None:
    def refused(words: str) -> None:
        with pytest.raises(CommandError, match=words):
            call_command("backups", "revive", str(berry.pk))
        assert Server.objects.get(pk=berry.pk).deleted == berry.deleted
        assert UnwrapGrant.objects.count() == 0

    refused("This server is not gone")
    delete(berry)
    namesake = make_server("other", server_name=berry.server_name)
    refused("is taken by another server")
    Server.objects.filter(pk=namesake.pk).delete()
    (tmp_path / str(berry.pk)).rename(tmp_path / "away")
    refused("The signing key can't be read")
    (tmp_path / "away").rename(tmp_path / str(berry.pk))
    RestorePoint.objects.update(state="gone")
    refused("No whole restore point")


def test_a_key_that_is_there_stays(berry: Server) -> None:
    before = str(ServerSecret.objects.get(server=berry, name="signing_key").value)
    secrets.adopt_signing_key(berry, new_signing_key())
    assert str(ServerSecret.objects.get(server=berry, name="signing_key").value) == before
