"""The internal certificate authority: it signs for identities that Hearth decides on, and follows itself in time.

Which authority signs is not stored but follows from the clock: of those that are valid now and may sign, the newest.
So nothing has to be switched over, a wrong clock that is set right again is harmless, and a crash leaves nothing half
done.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, cast

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from django.conf import settings
from django.db import connection, transaction
from django.utils import timezone
from django.views.decorators.debug import sensitive_variables

from audit.services import SYSTEM, record
from security.transport.errors import RequestError
from security.transport.identities import Identity
from security.transport.models import Authority
from security.transport.requests import private_pem

SKEW = timedelta(hours=1)
"""How far the clocks of two machines may be apart: a certificate is valid this long before it was made, but at most a
tenth of its life, which is counted from then on."""
OVERLAP = timedelta(days=14)
"""How long a new authority is only trusted: the longest life of a certificate, so that every one that is still valid
by then came with the new authority in its trust."""
LONGEST_REQUEST = 8192
# Any number that nobody else locks: two that renew at once do it one after the other, and the second finds it done.
LOCK = 0x48434131


@dataclass(frozen=True)
class Issued:
    """A signed certificate (PEM), the authorities to trust (PEM), and when the certificate ends."""

    chain: str
    trust: str
    not_after: datetime


@sensitive_variables()
def issue(csr_pem: bytes, identity: Identity, *, hosts: Sequence[str] = (), actor: Any = SYSTEM) -> Issued:
    """Sign the request's key for `identity`. What the request itself asks for (names, usages) is not looked at.

    `hosts` are the names and addresses that the listener is reached by. Raises `RequestError`; nothing was signed then.
    """
    key = _requested_key(csr_pem)
    if hosts and identity.kind != "hearth":
        raise ValueError("Only the listener is reached by a host name.")
    now = timezone.now()
    signer = _signer(now) or _renew()[0]
    certificate = _leaf(signer, key, [x509.UniformResourceIdentifier(identity.uri), *map(_host, hosts)], now)
    until = certificate.not_valid_after_utc
    with transaction.atomic():
        signed = {"identity": identity.uri, "serial": f"{certificate.serial_number:x}", "until": until.isoformat()}
        record(actor=actor, verb="certificate.issue", object=signer, after=signed)
    return Issued(_pem(certificate), trust(), until)


def trust() -> str:
    """Return every authority that has not expired (PEM, newest first); the first call makes one."""
    now = timezone.now()
    if _signer(now) is None:
        _renew()
    return "".join(Authority.objects.filter(not_after__gt=now).values_list("certificate", flat=True))


def renew_due() -> bool:
    """Make the next authority when a third of the newest one's life is left; tell whether one was made."""
    return _is_due(timezone.now()) and _renew()[1]


@transaction.atomic
def _renew() -> tuple[Authority, bool]:
    """Make the next authority if it is due; return the one that signs, and whether one was made. Two at once make one.

    The lock and the row end with the transaction, whatever becomes of this process.
    """
    _lock()
    now = timezone.now()  # behind the lock: whoever waited must not look from before
    present = _signer(now)
    if present is not None and not _is_due(now):
        return present, False
    signs_from = now - SKEW if present is None else min(now + OVERLAP, present.not_after)
    made = _create(SYSTEM, now, signs_from, "authority.create")
    return present or made, True


@transaction.atomic
def replace(actor: Any) -> Authority:
    """End every authority at once and make another one: the key of one may be known to others.

    Certificates that were signed before are worth nothing from then on; whoever holds one needs a new one from Hearth.
    """
    _lock()
    now = timezone.now()
    Authority.objects.filter(not_after__gt=now).update(not_after=now)
    return _create(actor, now, now - SKEW, "authority.replace")


def _lock() -> None:
    with connection.cursor() as cursor:
        cursor.execute("select pg_advisory_xact_lock(%s)", [LOCK])


def _signer(now: datetime) -> Authority | None:
    return Authority.objects.filter(not_before__lte=now, not_after__gt=now, signs_from__lte=now).first()


def _is_due(now: datetime) -> bool:
    """Tell whether no authority that is valid now has more than a third of its life left."""
    valid = Authority.objects.filter(not_before__lte=now, not_after__gt=now)
    return not any(each.not_after - now > (each.not_after - each.not_before) / 3 for each in valid.defer("key"))


@sensitive_variables()
def _create(actor: Any, now: datetime, signs_from: datetime, verb: str) -> Authority:
    made = Authority(not_before=now - SKEW, signs_from=signs_from)
    made.not_after = now + timedelta(days=settings.HEARTH["HEARTH_INTERNAL_AUTHORITY_DAYS"])
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Hearth"),
            # Two authorities of one name would be tried in turn by whoever verifies.
            x509.NameAttribute(NameOID.COMMON_NAME, f"internal authority {made.id}"),
        ]
    )
    certificate = (
        _builder(name, name, key.public_key(), made.not_before, made.not_after)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(key_cert_sign=True, crl_sign=True), critical=True)
        .sign(key, hashes.SHA256())
    )
    made.certificate, made.key = _pem(certificate), private_pem(key)
    made.save(force_insert=True)
    told = {"until": made.not_after.isoformat(), "signs_from": signs_from.isoformat()}
    record(actor=actor, verb=verb, object=made, after=told)
    return made


@sensitive_variables()
def _leaf(
    signer: Authority, key: ec.EllipticCurvePublicKey, names: list[x509.GeneralName], now: datetime
) -> x509.Certificate:
    """Return the signed certificate; the first name is the identity's URI."""
    parent = x509.load_pem_x509_certificate(signer.certificate.encode())
    private = cast("ec.EllipticCurvePrivateKey", serialization.load_pem_private_key(signer.key.encode(), None))
    life = timedelta(seconds=settings.HEARTH["HEARTH_INTERNAL_CERTIFICATE_SECONDS"])
    since, until = now - min(SKEW, life / 10), min(now + life, signer.not_after)
    subject = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Hearth")])
    listens = Identity.parse(names[0].value).kind == "hearth"
    usage = ExtendedKeyUsageOID.SERVER_AUTH if listens else ExtendedKeyUsageOID.CLIENT_AUTH
    return (
        _builder(subject, parent.subject, key, since, until)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(private.public_key()), critical=False)
        .sign(private, hashes.SHA256())
    )


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, since: datetime, until: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(since)
        .not_valid_after(until)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _usage(*, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _requested_key(csr_pem: bytes) -> ec.EllipticCurvePublicKey:
    """Return the key that a request is about, or raise `RequestError`. Its signature proves who holds the key."""
    try:
        if len(csr_pem) > LONGEST_REQUEST:
            raise ValueError
        request = x509.load_pem_x509_csr(csr_pem)
        key = request.public_key()
        proved = isinstance(key, ec.EllipticCurvePublicKey) and request.is_signature_valid
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise RequestError("The certificate request can't be read. Nothing was signed. Send PKCS#10 in PEM.") from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise RequestError("The certificate request has a key of another kind. Nothing was signed. Use ECDSA P-256.")
    if not proved:
        raise RequestError("The certificate request is not signed by its own key. Nothing was signed.")
    return key


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()
