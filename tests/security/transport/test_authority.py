"""The internal authority: what it signs, for whom, and how it follows itself without cutting anybody off."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID
from django.conf import settings
from django.db import connection
from django.utils import timezone

from audit.models import AuditEvent
from security.transport import authority, tasks
from security.transport.errors import RequestError
from security.transport.identities import of_certificate
from security.transport.models import Authority
from tests.security.transport.pki import AGENT, LISTENER, csr
from tests.together import at_once

pytestmark = pytest.mark.django_db
DAY = timedelta(days=1)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


class Clock:
    """Hearth's clock, which a test sets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.start = self.now = datetime.now(UTC).replace(microsecond=0)
        monkeypatch.setattr(timezone, "now", lambda: self.now)

    def day(self, number: float) -> None:
        self.now = self.start + number * DAY


@lru_cache(maxsize=64)
def leaf(pem: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate(pem.encode())


@lru_cache(maxsize=64)
def signers(trust: str) -> list[x509.Certificate]:
    return x509.load_pem_x509_certificates(trust.encode())


def verifies(chain: str, trust: str) -> bool:
    """Tell whether a chain is good by a trust."""
    for one in signers(trust):
        if one.subject == leaf(chain).issuer:
            leaf(chain).verify_directly_issued_by(one)
            return True
    return False


def test_it_works() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    issued = authority.issue(csr(key), AGENT)
    certificate = leaf(issued.chain)
    assert verifies(issued.chain, issued.trust)
    assert of_certificate(certificate) == AGENT
    form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert certificate.public_key().public_bytes(*form) == key.public_key().public_bytes(*form)
    assert certificate.not_valid_after_utc == issued.not_after
    week = timedelta(seconds=settings.HEARTH["HEARTH_INTERNAL_CERTIFICATE_SECONDS"])
    assert issued.not_after - certificate.not_valid_before_utc == week + authority.SKEW


def extension(certificate: x509.Certificate, kind: type[Any]) -> Any:
    return certificate.extensions.get_extension_for_class(kind)


def test_what_a_certificate_is_good_for() -> None:
    caller = leaf(authority.issue(csr(), AGENT).chain)
    listener = leaf(authority.issue(csr(), LISTENER, hosts=["localhost", "::1", "hearth.svc"]).chain)
    assert list(extension(caller, x509.ExtendedKeyUsage).value) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    assert list(extension(listener, x509.ExtendedKeyUsage).value) == [ExtendedKeyUsageOID.SERVER_AUTH]
    names = extension(listener, x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["localhost", "hearth.svc"]
    assert [str(address) for address in names.get_values_for_type(x509.IPAddress)] == ["::1"]
    for certificate in (caller, listener):
        assert not extension(certificate, x509.BasicConstraints).value.ca
        assert not extension(certificate, x509.KeyUsage).value.key_cert_sign
    root = signers(authority.trust())[0]
    assert extension(root, x509.BasicConstraints).value == x509.BasicConstraints(ca=True, path_length=0)


def test_what_the_request_asks_for_is_not_looked_at() -> None:
    asked = csr(names=[x509.UniformResourceIdentifier(LISTENER.uri), x509.DNSName("hearth.example")])
    certificate = leaf(authority.issue(asked, AGENT).chain)
    assert of_certificate(certificate) == AGENT
    assert len(extension(certificate, x509.SubjectAlternativeName).value) == 1


def test_only_the_listener_has_host_names() -> None:
    with pytest.raises(ValueError, match="Only the listener"):
        authority.issue(csr(), AGENT, hosts=["localhost"])


def bad_requests() -> dict[str, bytes]:
    good = csr()
    body = bytearray(x509.load_pem_x509_csr(good).public_bytes(Encoding.DER))
    body[-1] ^= 1
    try:
        forged = x509.load_der_x509_csr(bytes(body)).public_bytes(Encoding.PEM)
    except ValueError:  # the signature's own form was hit
        forged = b""
    return {
        "nothing": b"",
        "junk": b"junk",
        "cut off": good[:-40],
        "a key": b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
        "too long": good + b"\n" * 9000,
        "signed by another": forged,
        "RSA": csr(rsa.generate_private_key(65537, 2048)),
        "P-384": csr(ec.generate_private_key(ec.SECP384R1()), digest=hashes.SHA384()),
        "a curve that signs nothing here": csr(ec.generate_private_key(ec.SECP256K1())),
    }


@pytest.mark.parametrize("kind", bad_requests())
def test_a_bad_request_is_not_signed(kind: str) -> None:
    with pytest.raises(RequestError, match=r"Nothing was signed"):
        authority.issue(bad_requests()[kind], AGENT)
    assert not AuditEvent.objects.filter(verb="certificate.issue").exists()


def test_a_request_with_an_edwards_key_is_not_signed() -> None:
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    request = builder.sign(ed25519.Ed25519PrivateKey.generate(), None).public_bytes(Encoding.PEM)
    with pytest.raises(RequestError, match="Use ECDSA P-256"):
        authority.issue(request, AGENT)


def test_every_certificate_is_in_the_trail_and_no_key_is() -> None:
    issued = authority.issue(csr(), AGENT)
    made, signed = AuditEvent.objects.order_by("id").filter(object_type="authority")
    assert (made.verb, signed.verb) == ("authority.create", "certificate.issue")
    assert signed.after["identity"] == AGENT.uri
    assert int(signed.after["serial"], 16) == leaf(issued.chain).serial_number
    everything = json.dumps(list(AuditEvent.objects.values("before", "after", "object_label")))
    assert "PRIVATE" not in everything
    assert "BEGIN" not in everything


def test_the_authoritys_key_is_sealed_in_the_database() -> None:
    authority.trust()
    with connection.cursor() as cursor:
        cursor.execute("select key from transport_authority")
        stored = bytes(cursor.fetchone()[0])
    assert b"PRIVATE" not in stored
    assert Authority.objects.get().key.startswith("-----BEGIN PRIVATE KEY-----")


def test_a_new_authority_comes_when_a_third_is_left(clock: Clock) -> None:
    authority.trust()
    clock.day(240)
    assert not authority.renew_due()
    clock.day(245)
    assert authority.renew_due()
    assert not authority.renew_due()
    assert Authority.objects.count() == 2
    tasks.renew_authority()
    assert Authority.objects.count() == 2


def test_nobody_is_cut_off_while_authorities_follow_one_another(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everybody renews at two thirds; at every hour everybody trusts everybody, listener and callers alike."""
    monkeypatch.setitem(settings.HEARTH, "HEARTH_INTERNAL_AUTHORITY_DAYS", 90)
    life = timedelta(seconds=settings.HEARTH["HEARTH_INTERNAL_CERTIFICATE_SECONDS"])
    people: list[tuple[authority.Issued, datetime]] = []
    seen = set()
    for hour in range(0, 24 * 160, 8):
        clock.day(hour / 24)
        authority.renew_due()
        if not people:
            people = [(authority.issue(csr(), AGENT), clock.now) for _ in range(3)]
        for number, (issued, since) in enumerate(people):
            # They differ in when they began, and the last one is late: nearly at the end of its life.
            due = since + (life * 2 / 3 if number < 2 else life - timedelta(hours=9)) - number * timedelta(hours=5)
            if clock.now >= due:
                people[number] = authority.issue(csr(), AGENT), clock.now
            assert issued.not_after > clock.now - timedelta(hours=8)
        for mine, _ in people:
            assert all(verifies(others.chain, mine.trust) for others, _ in people)
            seen.add(leaf(mine.chain).issuer)
    assert len(seen) >= 3


def test_a_leaf_never_outlives_its_authority(clock: Clock) -> None:
    authority.trust()
    clock.day(364)
    issued = authority.issue(csr(), AGENT)
    assert issued.not_after == clock.start + 365 * DAY


def test_hearth_was_away_for_years(clock: Clock) -> None:
    first = authority.trust()
    clock.day(1000)
    second = authority.trust()
    assert first != second
    assert len(signers(second)) == 1
    assert verifies(authority.issue(csr(), AGENT).chain, second)


def test_the_present_authority_signs_to_its_end_when_the_next_one_came_late(clock: Clock) -> None:
    before = authority.trust()
    clock.day(360)
    assert authority.renew_due()
    assert verifies(authority.issue(csr(), AGENT).chain, before)
    clock.day(366)
    issued = authority.issue(csr(), AGENT)
    assert not verifies(issued.chain, before)
    assert Authority.objects.count() == 2


def test_a_wrong_clock_that_is_set_right_again_is_harmless(clock: Clock) -> None:
    before = authority.issue(csr(), AGENT)
    clock.day(4000)
    authority.renew_due()
    wrong = authority.issue(csr(), AGENT)
    clock.day(1)
    assert not authority.renew_due()
    after = authority.issue(csr(), AGENT)
    assert leaf(after.chain).issuer == leaf(before.chain).issuer
    assert verifies(after.chain, before.trust)
    assert not verifies(wrong.chain, before.trust)
    clock.day(-4000)
    assert verifies(authority.issue(csr(), AGENT).chain, authority.trust())


def test_after_a_compromise_only_the_new_one_is_trusted() -> None:
    before = authority.issue(csr(), AGENT)
    made = authority.replace("somebody of the staff")
    after = authority.issue(csr(), AGENT)
    assert signers(after.trust) == [leaf(made.certificate)]
    assert not verifies(before.chain, after.trust)
    assert AuditEvent.objects.get(verb="authority.replace").actor_label == "somebody of the staff"


@pytest.mark.django_db(transaction=True)
def test_two_that_renew_at_once_make_one() -> None:
    at_once([authority.trust] * 6)
    assert Authority.objects.count() == 1
    # As if a third of it were left.
    Authority.objects.update(not_after=timezone.now() + 100 * DAY, not_before=timezone.now() - 265 * DAY)
    made = at_once([authority.renew_due] * 6)
    assert sorted(map(str, made)) == ["False"] * 5 + ["True"]
    assert Authority.objects.count() == 2


DYING = """
import os, signal, sys
import django
django.setup()
from security.transport import authority
real = authority.record
def record(**kwargs):
    real(**kwargs)
    print("written", flush=True)
    signal.pause()
authority.record = record
authority.trust()
"""


@pytest.mark.django_db(transaction=True)
def test_killed_in_the_middle_of_a_renewal() -> None:
    name = str(connection.settings_dict["NAME"])
    environment = {**os.environ, "DATABASE_URL": os.environ["DATABASE_URL"].replace("///hearth", f"///{name}")}
    root = Path(__file__).resolve().parents[3]
    environment["PYTHONPATH"] = f"{root / 'platform'}:{root}"
    process = subprocess.Popen(
        [sys.executable, "-c", DYING], cwd=root, env=environment, stdout=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "written\n"
        process.send_signal(signal.SIGKILL)
    assert not Authority.objects.exists()
    # Its lock died with it: the next one goes on at once.
    assert verifies(authority.issue(csr(), AGENT).chain, authority.trust())
    assert Authority.objects.count() == 1


def test_its_words() -> None:
    authority.trust()
    made = Authority.objects.get()
    assert str(made) == f"internal authority {str(made.pk)[:8]}"
