"""Domains of the customer's own: claimed by many, proved by one, asked of a real DNS server."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator

import pytest
from django.conf import settings
from django.utils import timezone
from dnslib import QTYPE, RCODE, RR, TXT, DNSRecord
from dnslib.server import DNSServer
from pytest_django import DjangoCaptureOnCommitCallbacks, Settings

from accounts import limits
from accounts.models import User
from audit.models import AuditEvent
from provisioning import fleet
from tenants import dns, services
from tenants.errors import Refused
from tenants.models import Domain, Organisation, Plan, Server
from tenants.services import domains
from tests.tenants.conftest import Seams
from tests.together import at_once

pytestmark = pytest.mark.django_db


class Zone:
    """Answers from a dictionary of TXT records; `SERVFAIL` when it is broken."""

    def __init__(self) -> None:
        self.texts: dict[str, list[str]] = {}
        self.broken = False

    def resolve(self, request: DNSRecord, _handler: object) -> DNSRecord:
        reply = request.reply()
        name = str(request.q.qname).rstrip(".")
        if self.broken:
            reply.header.rcode = RCODE.SERVFAIL
        elif name not in self.texts:
            reply.header.rcode = RCODE.NXDOMAIN
        elif request.q.qtype == QTYPE.TXT:
            for text in self.texts[name]:
                pieces = [text[place : place + 255] for place in range(0, len(text), 255)]
                reply.add_answer(RR(name, QTYPE.TXT, rdata=TXT(pieces), ttl=1))
        return reply


class Quiet:
    """dnslib prints each query otherwise."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_: None


@pytest.fixture
def zone(settings: Settings) -> Iterator[Zone]:
    """A DNS server on loopback that Hearth asks."""
    zone = Zone()
    server = DNSServer(zone, address="127.0.0.1", port=0, logger=Quiet())
    port = server.server.server_address[1]
    server.start_thread()
    settings.HEARTH = {**settings.HEARTH, "HEARTH_DNS_RESOLVERS": [f"127.0.0.1:{port}"]}
    yield zone
    server.server.shutdown()
    server.server.server_close()
    server.thread.join(60)


@pytest.fixture
def claimed(acme: Organisation, alice: User) -> Domain:

    return services.claim_domain(actor=alice, organisation=acme, name="example.org")


def record_of(domain: Domain) -> tuple[str, str]:
    return f"_hearth-challenge.{domain.name}", f"hearth-verify={domain.token}"


def check(actor: User, domain: Domain) -> Domain:

    return services.check_domain(actor=actor, domain=domain)


def test_it_works(claimed: Domain, acme: Organisation, alice: User, zone: Zone) -> None:

    name, value = record_of(claimed)
    zone.texts[name] = ["v=spf1 -all", value]
    assert check(alice, claimed).proved is not None
    assert AuditEvent.objects.get(verb="domain.prove").object_id == str(claimed.pk)
    for own in ("example.org", "chat.example.org"):
        server = services.create_server(
            actor=alice, organisation=acme, name=own.replace(".", "-"), region="local", domain=own
        )
        assert server.server_name == own
    with pytest.raises(Refused, match=r"“notexample\.org” is not on a domain"):
        services.create_server(actor=alice, organisation=acme, name="x", region="local", domain="notexample.org")


def test_a_value_in_pieces_is_one_value(claimed: Domain, alice: User, zone: Zone) -> None:

    Domain.objects.filter(pk=claimed.pk).update(token="t" * 64)
    claimed.refresh_from_db()
    name, value = record_of(claimed)
    zone.texts[name] = ["x" * 600, value]
    assert check(alice, claimed).proved is not None


@pytest.mark.parametrize(
    ("found", "sentence"),
    [
        (None, "DNS knows no _hearth-challenge.example.org"),
        ([], "exists in DNS but has no TXT record"),
        (["v=spf1 -all"], "none that begins with hearth-verify="),
        (["hearth-verify=old"], "another value"),
        ("broken", "answered with an error"),
    ],
)
def test_what_dns_says_becomes_a_sentence(
    claimed: Domain, alice: User, zone: Zone, found: list[str] | str | None, sentence: str
) -> None:
    zone.broken = found == "broken"
    if isinstance(found, list):
        zone.texts[record_of(claimed)[0]] = found
    with pytest.raises(Refused, match=sentence):
        check(alice, claimed)
    claimed.refresh_from_db()
    assert claimed.proved is None
    assert sentence in claimed.last_error
    assert claimed.last_checked is not None


def test_a_resolver_that_does_not_answer_says_nothing_about_the_record(
    claimed: Domain, alice: User, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:

    monkeypatch.setattr(dns, "TRY_S", 0.1)
    monkeypatch.setattr(dns, "TOTAL_S", 0.3)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        settings.HEARTH = {**settings.HEARTH, "HEARTH_DNS_RESOLVERS": [f"127.0.0.1:{silent.getsockname()[1]}"]}
        with pytest.raises(Refused, match="no resolver answered in time"):
            check(alice, claimed)


def test_many_claim_and_the_first_proof_wins(
    claimed: Domain, alice: User, charlie: User, plans: dict[str, Plan], zone: Zone
) -> None:

    other = services.create_organisation(actor=charlie, name="Other", plan=plans["ember"])
    second = services.claim_domain(actor=charlie, organisation=other, name="example.org")
    zone.texts[record_of(claimed)[0]] = [record_of(claimed)[1], record_of(second)[1]]
    assert check(charlie, second).proved is not None
    with pytest.raises(Refused, match=r"Another organisation has proved “example\.org” before"):
        check(alice, claimed)
    claimed.refresh_from_db()
    assert claimed.proved is None
    assert "Another organisation" in claimed.last_error


@pytest.mark.django_db(transaction=True)
def test_two_proofs_at_once_have_one_winner(
    claimed: Domain, alice: User, charlie: User, plans: dict[str, Plan], zone: Zone
) -> None:

    other = services.create_organisation(actor=charlie, name="Other", plan=plans["ember"])
    second = services.claim_domain(actor=charlie, organisation=other, name="example.org")
    zone.texts[record_of(claimed)[0]] = [record_of(claimed)[1], record_of(second)[1]]
    outcomes = at_once([lambda: check(alice, claimed), lambda: check(charlie, second)])
    assert len([outcome for outcome in outcomes if isinstance(outcome, Refused)]) == 1
    assert Domain.objects.filter(proved__isnull=False).count() == 1


def test_a_claim_reserves_nothing(claimed: Domain, acme: Organisation, alice: User) -> None:

    with pytest.raises(Refused, match="not on a domain that you have proved"):
        services.create_server(actor=alice, organisation=acme, name="x", region="local", domain="example.org")


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("example.org", "already in the list"),
        ("hearth.test", "belongs to Hearth"),
        ("deep.under.hearth.test", "belongs to Hearth"),
        ("EXAMPLE.org", "lower case"),
        ("192.0.2.7", "IP address"),
    ],
)
def test_a_claim_is_refused(claimed: Domain, acme: Organisation, alice: User, name: str, sentence: str) -> None:

    with pytest.raises(Refused, match=sentence) as refused:
        services.claim_domain(actor=alice, organisation=acme, name=name)
    assert refused.value.field == "name"
    assert acme.domains.count() == 1


def test_a_domain_in_use_cannot_be_given_up(claimed: Domain, acme: Organisation, alice: User, zone: Zone) -> None:

    name, value = record_of(claimed)
    zone.texts[name] = [value]
    check(alice, claimed)
    services.create_server(actor=alice, organisation=acme, name="x", region="local", domain="chat.example.org")
    with pytest.raises(Refused, match=r"The server chat\.example\.org uses this domain"):
        services.remove_domain(actor=alice, domain=claimed)
    acme.servers.all().delete()
    services.remove_domain(actor=alice, domain=claimed)
    assert not Domain.objects.exists()
    with pytest.raises(Refused, match="no longer in the list"):
        services.remove_domain(actor=alice, domain=claimed)


@pytest.mark.parametrize("trouble", ["missing", "wrong", "other", "broken"])
def test_the_longest_name_gets_its_sentence(acme: Organisation, alice: User, zone: Zone, trouble: str) -> None:
    longest = ".".join(["x" * 63, "x" * 63, "x" * 63, "x" * 38])
    domain = services.claim_domain(actor=alice, organisation=acme, name=longest)
    name, _ = record_of(domain)
    zone.broken = trouble == "broken"
    zone.texts = {"wrong": {name: ["hearth-verify=" + "y" * 2000]}, "other": {name: ["spf"]}}.get(trouble, {})
    with pytest.raises(Refused):
        check(alice, domain)
    domain.refresh_from_db()
    assert len(domain.last_error) > 200


@pytest.mark.parametrize("limit", ["CHECKS_DOMAIN", "CHECKS_ORGANISATION"])
def test_dns_is_not_asked_without_end(
    claimed: Domain, alice: User, zone: Zone, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    monkeypatch.setattr(domains, limit, limits.Limit("t", 2, 3600))
    for _ in range(2):
        with pytest.raises(Refused, match="DNS knows no"):
            check(alice, claimed)
    monkeypatch.setattr(dns, "check", lambda _: pytest.fail("DNS was asked"))
    with pytest.raises(Refused, match=r"DNS was asked often just now.*Check again in .* minute"):
        check(alice, claimed)
    claimed.refresh_from_db()
    assert "DNS knows no" in claimed.last_error


def test_a_proof_stands_when_its_record_vanishes(claimed: Domain, acme: Organisation, alice: User, zone: Zone) -> None:
    name, value = record_of(claimed)
    zone.texts[name] = [value]
    proved = check(alice, claimed)
    zone.texts.clear()
    assert check(alice, proved).proved == proved.proved
    services.create_server(actor=alice, organisation=acme, name="x", region="local", domain="chat.example.org")


@pytest.fixture
def proved(claimed: Domain, alice: User, zone: Zone) -> Domain:
    zone.texts[record_of(claimed)[0]] = [record_of(claimed)[1]]
    return check(alice, claimed)


@pytest.fixture
def on_it(proved: Domain, acme: Organisation, alice: User) -> Server:
    """A server of Acme on the domain that it has proved."""
    return services.create_server(actor=alice, organisation=acme, name="x", region="local", domain="chat.example.org")


@pytest.fixture
def other(charlie: User, plans: dict[str, Plan]) -> Organisation:
    return services.create_organisation(actor=charlie, name="Other", plan=plans["ember"])


def test_a_proof_taken_back_is_carried_out_and_noted(
    proved: Domain,
    on_it: Server,
    charlie: User,
    seams_of_test: Seams,
    django_capture_on_commit_callbacks: DjangoCaptureOnCommitCallbacks,
) -> None:
    with django_capture_on_commit_callbacks(execute=True):
        assert services.revoke_domain(actor=charlie, domain=proved)
    assert not services.revoke_domain(actor=charlie, domain=proved)
    on_it.refresh_from_db()
    assert on_it.generation == 2
    assert seams_of_test.woken == [on_it.pk]
    assert AuditEvent.objects.get(verb="domain.revoke").actor_id == charlie.pk
    with pytest.raises(Refused, match="not on a domain that you have proved"):
        services.create_server(
            actor=charlie, organisation=proved.organisation, name="y", region="local", domain="b.example.org"
        )


def test_after_it_the_new_holder_proves(proved: Domain, other: Organisation, charlie: User, zone: Zone) -> None:
    services.revoke_domain(actor=charlie, domain=proved)
    theirs = services.claim_domain(actor=charlie, organisation=other, name="example.org")
    zone.texts[record_of(theirs)[0]] = [record_of(theirs)[1]]
    assert check(charlie, theirs).proved is not None


def test_an_unproved_name_never_federates(proved: Domain, on_it: Server, other: Organisation, charlie: User) -> None:
    fleet.seed_region()
    assert fleet.may_federate(on_it)
    services.revoke_domain(actor=charlie, domain=proved)
    assert not fleet.may_federate(on_it)
    # Another organisation's proof of the same domain is not this one's.
    Domain.objects.create(organisation=other, name="example.org", token="t", proved=timezone.now())
    assert not fleet.may_federate(on_it)
    base = settings.HEARTH["HEARTH_BASE_DOMAIN"]
    names = {"notexample.org": False, f"x.{base}": True, base: False, f"x{base}": False}
    seen = {name: fleet.may_federate(Server(organisation=on_it.organisation, server_name=name)) for name in names}
    assert seen == names
