"""An agent's identity from end to end: the agent in its process, the authority, the internal listener: all real."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest
from django.conf import settings
from django.utils import timezone

from audit.models import AuditEvent
from config.internal import source
from provisioning import identities, observer
from provisioning.fleet import provider_for
from provisioning.models import Region, ServerStatus
from provisioning.providers.base import Observation, ServerSpec
from provisioning.providers.local.agent.credentials import Credentials
from provisioning.providers.local.keys import new_secrets
from provisioning.providers.local.provider import LocalProvider
from security.datakeys import grants
from security.datakeys.client import DataKeys
from security.models import UnwrapGrant
from security.transport import authority
from security.transport.client import InternalClient
from security.transport.errors import CallRefused, Unreachable
from security.transport.handler import InternalHandler
from security.transport.models import Authority
from tenants.models import Server
from tests.bench.floor import free_ports
from tests.security.transport.running import Running, running
from tests.services import wait

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.xdist_group("agents")]
SHORT = 12
"""Seconds that a certificate lives where a test waits for its renewal."""


@dataclass
class Hearth:
    """The part of Hearth that agents see, on this test's database."""

    agent: LocalProvider
    state: Path
    make_server: Callable[..., Server]

    def server(self, name: str) -> Server:
        """Return a server that has a folder on the agent's machine, and was made as far as Hearth knows."""
        server = self.make_server(name)
        spec = ServerSpec(str(server.pk), server.server_name, "1.0.0", 1, 1024, 1, 1, 10, secrets=new_secrets())
        self.agent.ensure_storage(spec, fence=0, progress=lambda _: None)
        ServerStatus.objects.create(server=server, applied={"mode": "running"}, observed_generation=server.generation)
        return server

    def credentials(self, server: Server) -> Credentials:
        return Credentials(self.state / "servers" / str(server.pk) / "identity", str(server.pk))

    def seen(self, server: Server) -> Observation:
        return self.agent.observe()[str(server.pk)]

    def certify(self, server: Server) -> None:
        """Do what the step of a server's making does."""
        identities.certify(server.pk, provider_for(Region.objects.get()), fence=0)

    def client(self, server: Server) -> InternalClient:
        """Return what the server's agent speaks to Hearth with, from its files."""
        mine = self.credentials(server)
        return InternalClient(mine.address, mine.pair_file, mine.pair_file, mine.trust)

    def key(self, server: Server) -> str:
        material = self.credentials(server).material
        assert material is not None
        return material.key


@pytest.fixture
def hearth(
    agent: LocalProvider, state: Path, make_server: Callable[..., Server], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Hearth]:
    identities._tried.clear()
    monkeypatch.setitem(settings.HEARTH, "HEARTH_INTERNAL_PORT", free_ports(1)[0])
    yield Hearth(agent, state, make_server)
    identities._tried.clear()


@contextmanager
def listening(monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    """Run the internal listener as the web process does, where the settings say that it is."""
    with running(source(settings.HEARTH), InternalHandler("config.internal_urls")) as listener:
        monkeypatch.setitem(settings.HEARTH, "HEARTH_INTERNAL_PORT", listener.port)
        yield listener


def test_a_servers_agent_gets_data_keys_for_its_own_server(hearth: Hearth, monkeypatch: pytest.MonkeyPatch) -> None:
    """And is refused another server's restore, also where both belong to one organisation."""
    berry, cherry = hearth.server("berry"), hearth.server("cherry")
    with listening(monkeypatch):
        for server in (berry, cherry):
            hearth.certify(server)
        with hearth.client(berry) as own, hearth.client(cherry) as other:
            identity, key = DataKeys(own).fresh("backup.base", "base/1")
            grant = grants.open_grant(
                "a test",
                organisation=berry.organisation_id,
                source=berry.pk,
                target=berry.pk,
                purpose=UnwrapGrant.Purpose.RESTORE,
                holder=uuid.uuid4(),
                fence=1,
                reason="a test",
            )
            assert DataKeys(own).unwrap(grant.pk, identity).reveal() == key.reveal()
            with pytest.raises(CallRefused) as refusal:
                DataKeys(other).unwrap(grant.pk, identity)
            assert refusal.value.status == 404


def test_a_deleted_server_has_no_identity_any_more(hearth: Hearth, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its certificate still counts for days; nobody who kept a copy gets anything by it, nor a new one."""
    server = hearth.server("berry")
    with listening(monkeypatch):
        hearth.certify(server)
        with hearth.client(server) as copy:
            copy.renew()
            Server.objects.filter(pk=server.pk).update(desired="deleted", deleted=timezone.now())
            with pytest.raises(CallRefused) as refusal:
                DataKeys(copy).fresh("backup.base", "base/1")
            assert refusal.value.type == "server-gone"
            with pytest.raises(CallRefused) as refusal:
                copy.renew()
            assert refusal.value.type == "server-gone"
    hearth.agent.remove(str(server.pk), fence=1, progress=lambda _: None)
    assert not hearth.credentials(server).folder.exists()


def test_it_renews_by_itself(hearth: Hearth, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two thirds of a short life are over: the certificate on disk is a new one without anybody's doing."""
    monkeypatch.setitem(settings.HEARTH, "HEARTH_INTERNAL_CERTIFICATE_SECONDS", SHORT)
    server = hearth.server("berry")
    with listening(monkeypatch):
        hearth.certify(server)
        first = hearth.key(server)
        wait(lambda: hearth.key(server) != first, seconds=60)
        with hearth.client(server) as client:
            assert DataKeys(client).fresh("backup.base", "base/1")
    renewed = AuditEvent.objects.filter(
        verb="certificate.issue", after__identity=hearth.credentials(server).identity.uri
    )
    assert "spiffe://hearth.internal/agent/" in str(renewed.order_by("-pk")[0].actor_label)
    assert hearth.seen(server).certificate_wanted == ""


def test_hearth_was_away_until_all_certificates_had_ended(hearth: Hearth, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is days in life is seconds here. The first look afterwards signs through the agent's socket."""
    with monkeypatch.context() as patched:
        patched.setitem(settings.HEARTH, "HEARTH_INTERNAL_CERTIFICATE_SECONDS", 5)
        server = hearth.server("berry")
        with listening(monkeypatch):
            hearth.certify(server)
        wait(lambda: hearth.seen(server).certificate_wanted == "CertificateExpired", seconds=60)
    with listening(monkeypatch):
        with pytest.raises(Unreachable), hearth.client(server) as client:
            client.renew()
        observer.observe()
        assert hearth.seen(server).certificate_wanted == ""
        with hearth.client(server) as client:
            assert client.renew().identity.name == str(server.pk)


def test_a_server_from_before_agents_had_identities(hearth: Hearth, monkeypatch: pytest.MonkeyPatch) -> None:
    server = hearth.server("berry")
    assert hearth.seen(server).certificate_wanted == "CertificateMissing"
    with listening(monkeypatch):
        observer.observe()
        assert hearth.seen(server).certificate_wanted == ""
        with hearth.client(server) as client:
            assert DataKeys(client).fresh("backup.base", "base/1")


def test_the_authority_is_another_one(hearth: Hearth, monkeypatch: pytest.MonkeyPatch) -> None:
    """The database was brought back from before the authority was made: nobody trusts anybody."""
    monkeypatch.setitem(settings.HEARTH, "HEARTH_INTERNAL_CERTIFICATE_SECONDS", SHORT)
    server = hearth.server("berry")
    hearth.certify(server)
    Authority.objects.all().delete()
    with listening(monkeypatch):
        monkeypatch.setitem(settings.HEARTH, "HEARTH_INTERNAL_CERTIFICATE_SECONDS", 3600)
        wait(lambda: hearth.seen(server).certificate_wanted != "", seconds=60)
        assert hearth.seen(server).certificate_wanted in {"CertificateRefused", "CertificateLate"}
        observer.observe()
        assert hearth.seen(server).certificate_wanted == ""
        with hearth.client(server) as client:
            assert client.renew()


def test_the_clock_was_ahead_and_is_set_right(hearth: Hearth, monkeypatch: pytest.MonkeyPatch) -> None:
    server = hearth.server("berry")
    authority.trust()  # made while the clock was right
    with monkeypatch.context() as patched:
        ahead = timezone.now() + timedelta(days=3)
        patched.setattr(timezone, "now", lambda: ahead)
        hearth.certify(server)
    assert hearth.seen(server).certificate_wanted == "CertificateNotYetValid"
    observer.observe()
    assert hearth.seen(server).certificate_wanted == ""


def test_the_internal_address_changed(hearth: Hearth, monkeypatch: pytest.MonkeyPatch) -> None:
    server = hearth.server("berry")
    hearth.certify(server)
    with listening(monkeypatch) as listener:
        assert hearth.seen(server).internal_address != listener.address
        observer.observe()
        assert hearth.seen(server).internal_address == listener.address
        with hearth.client(server) as client:
            assert client.renew()
