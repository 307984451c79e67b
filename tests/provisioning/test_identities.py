"""Each server's agent has an identity: given when the server is made, and again to whoever can't help itself."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography import x509
from django.conf import settings

from audit.models import AuditEvent
from provisioning import engine, identities, observer, services
from provisioning.models import Operation, ServerStatus
from provisioning.providers.base import Observation, ProviderError
from provisioning.providers.local.agent.credentials import Credentials
from security.errors import SecurityError
from security.transport import authority
from security.transport.identities import of_certificate
from security.transport.models import Authority
from security.transport.places import internal_address
from tenants.models import Server
from tests.provisioning.fakes import ScriptedProvider
from tests.provisioning.test_killed import killed_in

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def untried() -> Iterator[None]:
    identities._tried.clear()
    yield
    identities._tried.clear()


@pytest.fixture
def credentials(tmp_path: Path, server: Server, provider: ScriptedProvider) -> Credentials:
    """A real agent's folder; the provider asks with its key."""
    mine = Credentials(tmp_path / "identity", str(server.pk))
    provider.request = mine.request()
    return mine


def carry_out(server: Server) -> Operation:
    operation = services.reconcile(server.pk)
    assert operation is not None
    while engine.run(operation.pk):
        pass
    operation.refresh_from_db()
    return operation


def see(server: Server, provider: ScriptedProvider, **changes: object) -> None:
    """Let the provider see the server, and Hearth look at it."""
    seen = Observation(server_id=str(server.pk), exists=True, running=True, homeserver_url=provider.url)
    provider.observations[str(server.pk)] = replace(seen, **changes)  # type: ignore[arg-type]
    provider.certifying.clear()
    observer.observe()


def certified(provider: ScriptedProvider) -> int:
    return provider.certifying.count("install_certificate")


def test_it_works(server: Server, provider: ScriptedProvider, credentials: Credentials) -> None:
    operation = carry_out(server)
    assert operation.state == "succeeded", operation.error
    step = operation.steps.get(name="identity")
    assert (step.state, step.title) == ("done", "Connect it securely to Hearth")
    given = provider.installed[str(server.pk)]
    credentials.install(given["chain"], given["trust"], given["address"])  # the agent takes it
    assert credentials.wanted() == ""
    leaf = x509.load_pem_x509_certificate(given["chain"].encode())
    assert of_certificate(leaf).uri == f"spiffe://hearth.internal/agent/{server.pk}"
    assert given["address"] == internal_address(settings.HEARTH)
    assert given["trust"] == authority.trust()
    issued = AuditEvent.objects.get(verb="certificate.issue")
    assert issued.after["identity"] == f"spiffe://hearth.internal/agent/{server.pk}"


def test_it_runs_beside_the_start_and_costs_no_time(
    server: Server, provider: ScriptedProvider, credentials: Credentials
) -> None:
    """The start ends only after the certificate was installed, which it would wait for in vain if it came first."""
    installed = threading.Event()
    provider.faults["install_certificate"] = [installed.set]
    provider.faults["start"] = [lambda: None if installed.wait(60) else pytest.fail("the start had to wait")]
    operation = carry_out(server)
    assert operation.state == "succeeded", operation.error
    assert [operation.steps.get(name=name).attempts for name in ("identity", "start")] == [1, 1]


@pytest.mark.parametrize("failing", ["certificate_request", "start"])
def test_what_runs_together_is_tried_again_together(
    failing: str, server: Server, provider: ScriptedProvider, credentials: Credentials
) -> None:
    def fail() -> None:
        raise ProviderError("Not now.", code="NotNow")

    provider.faults[failing] = [fail]
    operation = carry_out(server)
    assert operation.state == "succeeded", operation.error
    assert [operation.steps.get(name=name).attempts for name in ("identity", "start")] == [2, 2]
    assert (provider.calls.count("start"), provider.certifying.count("certificate_request")) == (2, 2)
    assert provider.calls.count("configure") == 1


def test_where_agents_get_theirs_elsewhere_nothing_is_signed(server: Server, provider: ScriptedProvider) -> None:
    """As from cert-manager on Kubernetes."""
    assert carry_out(server).state == "succeeded"
    assert provider.installed == {}
    assert not Authority.objects.exists()


@pytest.mark.usefixtures("credentials")
def test_an_authority_that_fails_in_passing(
    server: Server, provider: ScriptedProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults = [SecurityError("The HSM does not answer; its PIN is 4711.")] * 2
    issue = authority.issue

    def sometimes(*args: object, **options: object) -> object:
        if faults:
            raise faults.pop()
        return issue(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(authority, "issue", sometimes)
    operation = carry_out(server)
    assert operation.state == "succeeded"
    lines = list(operation.events.filter(step="identity", level="warning").values_list("message", flat=True))
    assert len(lines) == 2
    assert "could not sign" in lines[0]
    assert "Your data is untouched" in lines[0]
    assert "4711" not in "".join(lines)
    assert provider.calls.count("configure") == 1
    assert str(server.pk) in provider.installed


def test_a_request_that_makes_no_sense_ends_with_a_reason(server: Server, provider: ScriptedProvider) -> None:
    provider.request = b"-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n"
    operation = carry_out(server)
    assert (operation.state, operation.error_code) == ("failed", "CertificateNotIssued")
    assert [operation.steps.get(name=name).state for name in ("identity", "start", "accounts")] == [
        "failed",
        "waiting",
        "waiting",
    ]


@pytest.mark.parametrize("step", ["certificate_request", "install_certificate"])
def test_a_worker_killed_in_the_step(
    step: str, server: Server, provider: ScriptedProvider, credentials: Credentials
) -> None:
    operation = services.reconcile(server.pk)
    assert operation is not None
    killed_in(step, operation.pk, provider)
    Operation.objects.filter(pk=operation.pk).update(lease_until=None)
    engine.run(operation.pk)
    operation.refresh_from_db()
    assert operation.state == "succeeded"
    assert provider.calls[0] == "start", "the steps that were done are not done again"
    given = provider.installed[str(server.pk)]
    credentials.install(given["chain"], given["trust"], given["address"])
    assert credentials.wanted() == ""


@pytest.fixture
def made(server: Server, provider: ScriptedProvider, credentials: Credentials) -> Server:
    carry_out(server)
    provider.installed.clear()
    return server


REASONS = [
    "CertificateMissing",
    "CertificateExpired",
    "CertificateNotYetValid",
    "CertificateLate",
    "CertificateRefused",
]


@pytest.mark.parametrize("reason", REASONS)
def test_an_agent_that_asks_gets_one_at_the_next_look(reason: str, made: Server, provider: ScriptedProvider) -> None:
    """Servers from before agents had identities, days without Hearth, a clock that was wrong, a lost authority."""
    see(made, provider, certificate_wanted=reason)
    assert certified(provider) == 1
    assert str(made.pk) in provider.installed
    assert ServerStatus.objects.get(server=made).phase == "ready", "people see nothing of it"
    assert not Operation.objects.exclude(kind="create").exists()
    see(made, provider)
    assert certified(provider) == 0


def test_an_agent_that_knows_another_address(made: Server, provider: ScriptedProvider) -> None:
    here = internal_address(settings.HEARTH)
    see(made, provider, internal_address=here)
    assert certified(provider) == 0
    see(made, provider, internal_address="https://127.0.0.1:9")
    assert provider.installed[str(made.pk)]["address"] == here


@pytest.mark.parametrize("columns", [{"desired": "suspended"}, {"desired": "deleted"}])
def test_a_server_that_is_closed_keeps_its_identity(
    columns: dict[str, str], made: Server, provider: ScriptedProvider
) -> None:
    """It can be opened again, and its last backups are still to be made."""
    Server.objects.filter(pk=made.pk).update(generation=2, delete_after="2099-01-01T00:00Z", **columns)
    carry_out(made)
    see(made, provider, certificate_wanted="CertificateExpired")
    assert certified(provider) == 1


def test_a_server_that_is_gone_gets_none(made: Server, provider: ScriptedProvider) -> None:
    Server.objects.filter(pk=made.pk).update(generation=2, desired="deleted", delete_after=made.created)
    carry_out(made)
    see(made, provider, certificate_wanted="CertificateMissing")
    assert certified(provider) == 0


def test_not_while_an_operation_works_on_the_server(made: Server, provider: ScriptedProvider) -> None:
    Server.objects.filter(pk=made.pk).update(generation=2, restarts=1)
    assert services.reconcile(made.pk)
    see(made, provider, certificate_wanted="CertificateMissing")
    assert provider.certifying == []


def test_it_names_the_newest_fence(made: Server, provider: ScriptedProvider) -> None:
    see(made, provider, certificate_wanted="CertificateMissing")
    provider.fences[str(made.pk)] = 99  # an operation took over in this moment
    identities._tried.clear()
    see(made, provider, certificate_wanted="CertificateMissing")
    assert certified(provider) == 0


def test_one_that_can_not_be_helped_keeps_nobody_waiting(
    made: Server, provider: ScriptedProvider, make_server: Callable[..., Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    other = make_server("other")
    carry_out(other)
    provider.installed.clear()
    monkeypatch.setattr(identities, "A_LOOK", 1)

    def fail() -> None:
        raise ProviderError("The disk of this machine is full.", code="DiskFull")

    for one in (made, other):
        provider.observations[str(one.pk)] = Observation(server_id=str(one.pk), certificate_wanted="CertificateMissing")
    provider.faults["install_certificate"] = [fail]
    for _ in range(3):
        observer.observe()
    assert set(provider.installed) == {str(other.pk)}
    assert provider.faults["install_certificate"] == [], "asked once, and not again at once"
    monkeypatch.setattr(identities, "AGAIN", 0.0)
    observer.observe()
    assert str(made.pk) in provider.installed


def test_somebody_elses_server_is_not_touched(made: Server, provider: ScriptedProvider) -> None:
    """The machine has a server that this Hearth does not know: the state folder of another."""
    stranger = str(uuid.uuid4())
    provider.observations = {stranger: Observation(server_id=stranger, certificate_wanted="CertificateMissing")}
    provider.certifying.clear()
    observer.observe()
    assert provider.certifying == []
